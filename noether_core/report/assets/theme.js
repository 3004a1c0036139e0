// What the pictures take from the style sheet: its colours, in this light.
const theme = {};
const DASHES = [[], [7, 4], [2, 3]];
const LOOKS = ["", "dashed", "dotted"];
const COLOURS = 8;

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "faint", "grid", "line", "surface", "bad", "good", "open", "cold", "middle", "warm", "deep", "odd"])
    theme[name] = style.getPropertyValue(`--${name}`).trim();
  theme.sans = style.getPropertyValue("--sans").trim();
  theme.series = Array.from({ length: COLOURS }, (_, k) => style.getPropertyValue(`--series-${k}`).trim());
}

const colourName = (run) => `var(--series-${run % COLOURS})`;
const dash = (run) => DASHES[Math.floor(run / COLOURS) % DASHES.length];
// of two runs that may well coincide, the first is a broad band and the second a line on it
const isBroad = (run, runs) => runs === 2 && run === 0;

function stroke(run, runs) {
  const look = isBroad(run, runs) ? "broad" : LOOKS[Math.floor(run / COLOURS) % LOOKS.length];
  return element("span", { class: `stroke ${look}`, "--colour": colourName(run) });
}

function channels(colour) {
  const hex = colour.replace("#", "");
  return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function translucent(colour, alpha) {
  return `rgba(${channels(colour).join(",")},${alpha})`;
}

// colours between stops, `share` from 0 to 1
function blend(stops, share) {
  const at = Math.min(stops.length - 2, Math.floor(share * (stops.length - 1)));
  const part = share * (stops.length - 1) - at;
  return stops[at].map((channel, k) => Math.round(channel + (stops[at + 1][k] - channel) * part));
}

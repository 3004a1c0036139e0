// Decode packed arrays, and make elements and words of plain values. Whatever comes from the data becomes text, never markup.
const KINDS = { f: Float32Array, d: Float64Array, B: Uint8Array, H: Uint16Array, I: Uint32Array };

function unpack(text) {
  const bytes = Uint8Array.from(atob(text.slice(1)), (char) => char.charCodeAt(0));
  return new KINDS[text[0]](bytes.buffer);
}

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// six significant digits, and no more characters than it takes
function number(value) {
  if (typeof value === "string") return value;
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) && size < 1e9) text = value.toLocaleString("en-US");
  else if (size >= 1e-4 && size < 1e7) text = String(Number(value.toPrecision(6)));
  else text = value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return text.replace(/^-/, "−").replace("e-", "e−");
}

function rough(value, digits = 2) {
  if (typeof value !== "number" || !Number.isFinite(value)) return number(value);
  const size = Math.abs(value);
  if (value === 0 || (size >= 0.01 && size < 10 ** digits)) return number(Number(value.toPrecision(digits)));
  if (size >= 1 && size < 1e7) return Math.round(value).toLocaleString("en-US");
  return number(Number(value.toPrecision(digits)));
}

function tick(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e").replace("-", "−").replace("-", "−");
  return String(Number(value.toPrecision(6))).replace("-", "−");
}

function duration(seconds) {
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds === 0) return "0";
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
  return `${Math.floor(seconds / 3600)}:${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} h`;
}

const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;


// Decode packed arrays, and make elements and words of plain values. Whatever comes from the data becomes text, never markup.
const KINDS = { f: Float32Array, d: Float64Array, B: Uint8Array, H: Uint16Array, I: Uint32Array };

function unpack(text) {
  return new KINDS[text[0]](bytesOf(text.slice(1)).buffer);
}

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // browsers since 2025; ten times as fast
  const chars = atob(base64);
  const bytes = new Uint8Array(chars.length);
  for (let at = 0; at < chars.length; at++) bytes[at] = chars.charCodeAt(at);
  return bytes;
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

const WHOLE_NUMBER = new Intl.NumberFormat("en-US");

// six significant digits, and no more characters than it takes
function number(value) {
  if (typeof value === "string") return value;
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) && size < 1e9) text = WHOLE_NUMBER.format(value);
  else if (size >= 1e-4 && size < 1e7) text = String(Number(value.toPrecision(6)));
  else text = value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  return text.replace(/^-/, "−").replace("e-", "e−");
}

function rough(value, digits = 2) {
  if (typeof value !== "number" || !Number.isFinite(value)) return number(value);
  const size = Math.abs(value);
  if (value === 0 || (size >= 0.01 && size < 10 ** digits)) return number(Number(value.toPrecision(digits)));
  if (size >= 1 && size < 1e7) return WHOLE_NUMBER.format(Math.round(value));
  return number(Number(value.toPrecision(digits)));
}

function tick(value, digits = 3) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e").replaceAll("-", "−");
  return String(Number(value.toPrecision(Math.max(6, digits)))).replace("-", "−");
}

// the words of an axis, with as many digits as say each place to a part of the step to the next; null has none
function ticks(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const step = Math.min(...known.slice(1).map((value, at) => Math.abs(value - known[at]) || Infinity));
  const isExact = (digits) => known.every((value) => Math.abs(Number(value.toPrecision(digits)) - value) <= step / 20);
  let digits = 3;
  while (digits < 15 && !isExact(digits)) digits++;
  return values.map((value) => (value === null || value === undefined ? "" : tick(value, digits)));
}

function duration(seconds) {
  if (seconds < 0) return `−${duration(-seconds)}`;
  if (seconds === 0) return "0";
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
  return `${Math.floor(seconds / 3600)}:${String(Math.floor((seconds % 3600) / 60)).padStart(2, "0")} h`;
}

const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;


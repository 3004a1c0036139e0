// A card for each key: its curves, drawn when they come into view and let go when they leave it.
const state = { axis: "update", log: false, smooth: 0, apart: false, hidden: new Set(), query: "" };
const drawn = new Set(); // what has a picture now
const waiting = new Set(); // what has come into view
const FAR = "300px";
const SPARE = 6; // milliseconds that a frame of a page that stands still can spare
const STILL = 150; // milliseconds after which it stands still
const PATIENCE = 250; // milliseconds that a picture waits, at the most, for one that is idle
const MOST = 10; // milliseconds that a picture is expected to take, at the most
let cost = 0; // milliseconds that the last one took
let waitsSince = 0;
let scrolledAt = -Infinity;
let isScheduled = false;
addEventListener("scroll", () => { scrolledAt = performance.now(); }, { passive: true });

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const picture = entry.target.picture;
    picture.isNear = entry.isIntersecting;
    picture.size = [entry.boundingClientRect.width, entry.boundingClientRect.height]; // to ask for it costs a layout
    if (picture.isNear && !picture.isDrawn) waiting.add(picture);
    else if (!picture.isNear && picture.isDrawn) { picture.clear(); picture.isDrawn = false; drawn.delete(picture); }
  }
  if (!isScheduled) waitsSince = performance.now();
  if (performance.now() - scrolledAt > STILL) drawSome();
  else drawLater();
}, { rootMargin: FAR });

// draw what waits as long as there is time: what the browser has before its next frame, or on a page that stands still a part of one
function drawSome(deadline) {
  const begun = performance.now();
  const isIdle = deadline && !deadline.didTimeout && begun - waitsSince < PATIENCE;
  const left = () => (isIdle ? deadline.timeRemaining() : begun + SPARE - performance.now());
  for (const picture of waiting) {
    if (isIdle ? left() < cost : left() < 0) break;
    waiting.delete(picture);
    if (!picture.isNear || picture.isDrawn) continue;
    const before = performance.now();
    show(picture);
    waitsSince = performance.now();
    cost = Math.min(waitsSince - before, MOST);
    if (deadline && !isIdle) break;
  }
  drawLater();
}

// go on when the browser has shown a frame and is idle, so that no frame of scrolling waits for a picture
function drawLater() {
  if (isScheduled || !waiting.size) return;
  isScheduled = true;
  const draw = (deadline) => { isScheduled = false; drawSome(deadline); };
  if (window.requestIdleCallback) requestIdleCallback(draw, { timeout: PATIENCE });
  else requestAnimationFrame(() => draw());
}

function show(picture) {
  picture.draw();
  picture.isDrawn = true;
  picture.size = null; // it may be another one the next time
  drawn.add(picture);
}

// let `draw` and `clear` be called as `host` comes and goes
function lazily(host, draw, clear) {
  host.picture = { draw, clear, isNear: false, isDrawn: false, size: null };
  watcher.observe(host);
  return host.picture;
}

function redrawAll() {
  for (const picture of [...drawn]) { picture.isDrawn = false; drawn.delete(picture); picture.clear(); waiting.add(picture); }
  for (const picture of waiting) picture.size = null;
  drawSome();
}

// which rows of its clock a curve has
function rowsOf(curve) {
  const rows = curve.rows ? Uint32Array.from(unpack(curve.rows)) : new Uint32Array(curve.n).fill(1, 1);
  for (let at = 1; at < rows.length; at++) rows[at] += rows[at - 1];
  return rows;
}

// where a clock's rows stand on an axis: those that are known, and the values there; many curves have one clock
const unpackedClocks = new Map();
function knotsOf(clock, axis) {
  const known = clock[axis] || clock.update;
  if (!unpackedClocks.has(known)) unpackedClocks.set(known, known.map(unpack));
  return unpackedClocks.get(known);
}

function axisAt(clock, axis, rows) {
  const [places, values] = knotsOf(clock, axis);
  const rising = new Float64Array(rows.length);
  const tiny = 1e-9 * (Math.abs(values[values.length - 1]) || 1);
  for (let at = 0, k = 0; at < rows.length; at++) {
    while (k + 1 < places.length && places[k + 1] <= rows[at]) k++;
    rising[at] = values[k];
    if (k + 1 < places.length) rising[at] += ((values[k + 1] - values[k]) * (rows[at] - places[k])) / (places[k + 1] - places[k]);
    if (at && rising[at] <= rising[at - 1]) rising[at] = rising[at - 1] + tiny; // no two points stand at one place
  }
  return rising;
}

function lineOf(report, curve, colour, label) {
  const rows = rowsOf(curve);
  const runs = report.runs.length;
  const broad = isBroad(curve.run, runs);
  const clock = report.clocks[curve.clock];
  const x = axisAt(clock, state.axis, rows);
  return {
    x, y: unpack(curve.y), provisional: curve.provisional ? [...unpack(curve.provisional)] : [], update: state.axis === "update" ? x : axisAt(clock, "update", rows), colour, label,
    width: broad ? 6 : runs > 8 ? 1 : 1.75, alpha: broad ? 0.5 : 0, dash: dash(curve.run), swatch: () => stroke(curve.run, runs),
  };
}

function curveLines(report, chart) {
  const lines = [];
  for (const curve of chart.curves) {
    if (state.hidden.has(curve.run)) continue;
    const line = lineOf(report, curve, theme.series[curve.run % COLOURS], report.runs[curve.run].label);
    lines.push(...(state.smooth ? smoothLines(report, curve, line, state.smooth) : [line]));
  }
  return lines.sort((a, b) => Boolean(b.isBeneath) - Boolean(a.isBeneath));
}

function apartLine(report, chart) {
  const curve = { ...chart.apart, run: 1, clock: chart.curves[0].clock };
  return { ...lineOf(report, curve, theme.series[3], "relative difference"), swatch: () => element("span", { class: "stroke", "--colour": "var(--series-3)" }), alpha: 0, dash: [], width: 1.75 };
}

// the noise that was measured for a key: of the comparison's own key, or of a norm or a loss of it, which it bounds
function noiseOf(report, key) {
  const courses = report.verdict ? report.verdict.courses : [];
  const course = courses.find((each) => key === each.key || (key.startsWith(`${each.key}/`) && (each.stage === "loss" || key.slice(each.key.length).split("/").includes("norm"))));
  return course && course.noise.every(Number.isFinite) ? course : null;
}

function noiseAt(course, update) {
  let at = 0;
  while (at + 1 < course.update.length && course.update[at + 1] <= update) at++;
  return course.noise[at];
}

function bandOf(report, key, line) {
  const course = noiseOf(report, key);
  if (!course || !line) return undefined;
  const away = line.y.map((value, at) => Math.abs(value) * noiseAt(course, line.update[at]));
  return { x: line.x, low: line.y.map((value, at) => value - away[at]), high: line.y.map((value, at) => value + away[at]) };
}

function optionsOf(report, chart, lines, isApart) {
  const first = report.verdict && report.verdict.first;
  const course = noiseOf(report, chart.key);
  return {
    axis: state.axis, log: state.log || isApart,
    mark: first && state.axis === "update" ? first.update : undefined,
    band: isApart ? undefined : bandOf(report, chart.key, lines.find((line) => !line.isBeneath)),
    floor: isApart && course && state.axis === "update" ? { x: course.update, y: course.noise } : undefined,
  };
}

function keyTitle(level, key) {
  if (!key.trim()) return element(level, { text: JSON.stringify(key) }); // else nothing would be seen
  const slash = key.indexOf("/") + 1;
  const parts = key.slice(slash).match(/[^/._-]*[/._-]?/g); // where a long name may go on on another line
  return element(level, {}, element("span", { class: "dim", text: key.slice(0, slash) }), ...parts.flatMap((part) => [element("wbr"), part]));
}

function lastsOf(report, chart) {
  const curves = chart.curves.filter((curve) => !state.hidden.has(curve.run));
  if (curves.length > 4) return [element("span", { text: plural(curves.length, "run") })];
  return curves.map((curve) => {
    const values = unpack(curve.y);
    const isPart = curve.provisional && unpack(curve.provisional).includes(values.length - 1);
    return element("span", { title: `last value of ${report.runs[curve.run].label}${isPart ? ", provisional: its interval was not over" : ""}` }, stroke(curve.run, report.runs.length), `${number(values[values.length - 1])}${isPart ? " ○" : ""}`);
  });
}

// `isApart` says what is drawn whatever the bar says: the values, or how far two runs are apart.
function chartCard(report, chart, level = "h4", isApart = undefined) {
  const lasts = element("div", { class: "lasts" });
  const plot = element("div", { class: "plot", role: "img", "aria-label": `${chart.key}: ${plural(chart.curves.length, "curve")}` });
  const note = element("div", { class: "note" });
  const card = element("article", { class: "card" }, element("div", { class: "card-top" }, keyTitle(level, chart.key), enlarge()), lasts, plot, note);
  let current = null;
  const draw = () => {
    const { apart } = chart;
    const showsApart = isApart === undefined ? state.apart : isApart;
    note.textContent = "";
    lasts.replaceChildren();
    if (showsApart && apart && apart.n && apart.equal === apart.n) return plot.replaceChildren(calm("=", `the same to the bit at all ${plural(apart.n, "update")} that both logged`));
    if (showsApart && !(apart && apart.n)) return plot.replaceChildren(calm("–", report.runs.length === 2 ? "logged by one run alone" : "differences are drawn of two runs"));
    if (!showsApart) lasts.replaceChildren(...lastsOf(report, chart));
    const lines = showsApart ? [apartLine(report, chart)] : curveLines(report, chart);
    if (!lines.length) return plot.replaceChildren(calm("–", "hidden"));
    if (showsApart) lasts.replaceChildren(element("span", {}, lines[0].swatch(), `relative difference, log scale`));
    note.textContent = notes(chart, lines, showsApart);
    plot.replaceChildren();
    current = drawChart(plot, lines, optionsOf(report, chart, lines, showsApart));
    return undefined;
  };
  const clear = () => { if (current) current.destroy(); current = null; plot.replaceChildren(); };
  lazily(plot, draw, clear);
  card.key = chart.key;
  return card;
}

function notes(chart, lines, isApart) {
  const odd = lines.flatMap((line) => (line.isSmooth ? [] : [...line.y.filter((value) => !isDrawn(value))]));
  const found = [];
  if (odd.length) found.push(odd.some(Number.isFinite) ? "× marks what is NaN, infinite or larger than 1e300" : "× marks what is NaN or infinite");
  if (lines.some((line) => !line.isSmooth && line.provisional.length)) found.push("○ is provisional: its interval was not over");
  if (!isApart && lines.some((line) => line.isSmooth)) found.push("smoothed; faint: as logged");
  if (isApart) found.push(`${number(chart.apart.equal)} of ${plural(chart.apart.n, "value")} equal`);
  else if (state.log && !canBeLog(lines)) found.push("nothing above 0: linear");
  else if (state.log && lines.some((line) => line.y.some((value) => isDrawn(value) && !isDrawn(value, true)))) found.push("values of 0 and below are not on this scale");
  return found.join(" · ");
}

const calm = (sign, text) => element("div", { class: "calm" }, element("b", { text: sign }), element("span", { text }));

function enlarge() {
  const button = element("button", { class: "icon", type: "button", title: "larger or smaller", "aria-label": "larger or smaller", "aria-pressed": "false", text: "⤢" });
  button.addEventListener("click", () => {
    const card = button.closest(".card");
    button.setAttribute("aria-pressed", String(card.classList.toggle("wide")));
    const { picture } = card.querySelector(".plot");
    picture.clear();
    picture.size = null;
    show(picture);
  });
  return button;
}

// Draw one chart with uPlot: lines that need not share their places on x, noise beneath them, values under the pointer.
const WHOLE = Array.from({ length: 45 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3)); // steps between updates that are named
const REACHED = 12; // pixels from a line's end, where its value is still said
const LARGEST = 1e300; // beyond, and on a log scale below its inverse, an axis has no places; such a value is marked as an infinity is
const FINEST = 2 ** -44; // of a value's size: no axis spans less, so that its places differ
const X_NAMES = { update: "update", epoch: "epoch", sample: "sample", time: "time" };

function xWords(axis, value) {
  return axis === "time" ? duration(value) : axis === "epoch" ? String(Number(value.toFixed(2))) : number(Math.round(value));
}

function xTick(axis, value, largest) {
  if (axis === "time") return duration(value);
  if (largest < 1e4 || value === 0) return number(Number(value.toPrecision(6)));
  return Math.abs(value) < 1e6 ? `${tick(value / 1e3)}k` : `${tick(value / 1e6)}M`;
}

const isDrawn = (value, isLog) => Math.abs(value) <= LARGEST && (!isLog || value >= 1 / LARGEST);
const canBeLog = (lines) => lines.some((line) => line.y.some((value) => isDrawn(value, true)));

/* Draw lines, each with x, y, label, colour, width, dash and, for a single one of several, run. Options: axis, log, band (x, low, high),
   mark (a place on x), floor (x, y: what lies below is noise). Returns the chart; `destroy` ends it.
   The lines keep their own places on x: uPlot is told where these begin and end, and asks for the path of each. */
function drawChart(host, lines, options) {
  const isLog = options.log && canBeLog(lines);
  const tip = element("div", { class: "tip", hidden: true });
  const [width, height] = host.picture.size || [host.clientWidth, host.clientHeight];
  let view = [0, 1]; // what of x is shown; uPlot asks for it before it asks for y
  const chart = new uPlot({
    width: Math.max(120, Math.floor(width)), height: Math.max(120, Math.floor(height)),
    legend: { show: false }, padding: [10, 18, 0, 0],
    cursor: { drag: { x: true, y: false, dist: 6 }, y: false, points: { show: false } },
    scales: { x: { time: false, range: (u, low, high) => (view = xRange(low, high)) }, y: { distr: isLog ? 3 : 1, range: () => yRange(lines, view, isLog, options) } },
    axes: [
      { ...axisLook(), ...(options.axis === "update" || options.axis === "sample" ? { incrs: WHOLE } : {}), size: 30, space: 56, values: (u, splits) => splits.map((value) => xTick(options.axis, value, Math.max(...splits.map(Math.abs)))) },
      { ...axisLook(isLog), incrs: (u, axis, low, high) => steps(high - low), splits: (u, axis, low, high, step) => (isLog ? decades(low, high) : multiples(low, high, step)), size: (u, values) => Math.max(36, ...(values || []).map((text) => 6.4 * text.length + 16)), space: isLog ? 34 : 28, values: (u, splits) => ticks(splits) },
    ],
    series: [{}, ...lines.map((line) => {
      const colour = line.alpha ? translucent(line.colour, line.alpha) : line.colour;
      return { stroke: colour, fill: colour, width: line.width, dash: line.dash, pxAlign: 0, points: hollow(line, isLog), paths: (u) => pathOf(u, line, isLog) };
    })],
    hooks: {
      drawAxes: [(u) => drawBeneath(u, options)],
      draw: [(u) => drawOdd(u, lines)],
      setCursor: [(u) => showTip(u, tip, lines, options)],
    },
  }, [endsOf(lines), ...lines.map(() => [null, null])], host);
  chart.over.append(tip);
  followTouch(chart);
  return chart;
}

// 1, 2 and 5 times powers of ten about the size of a span: uPlot's own are none of very large or very small values
function steps(span) {
  const power = Math.floor(Math.log10(span));
  return [-2, -1, 0, 1].flatMap((more) => [1, 2, 5].map((first) => first * 10 ** (power + more))).filter((step) => step > 0);
}

function multiples(low, high, step) {
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) found.push(at * step + 0); // of −0, 0
  return found;
}

function decades(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) found.push(...[1, 2, 5].map((first) => first * 10 ** power));
  return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

// of a log scale, 1, 2 and 5 times powers of ten have a line and a number, of a long one powers alone
const rungs = (u, splits) => {
  const tens = Math.log10(u.scales.y.max / u.scales.y.min);
  const every = Math.max(1, Math.ceil(tens / 7));
  return splits.map((value) => {
    const power = Math.floor(Math.log10(value) + 1e-9);
    const first = Math.round(value / 10 ** power);
    return (first === 1 && power % every === 0) || (tens < 2.2 && (first === 2 || first === 5)) ? value : null;
  });
};

function axisLook(isLog = false) {
  const filter = isLog ? { filter: rungs } : {};
  return { stroke: theme.soft, font: `11px ${theme.sans}`, grid: { stroke: theme.grid, width: 1, ...filter }, ticks: { show: false }, gap: 6, ...filter };
}

function endsOf(lines) {
  const known = lines.filter((line) => line.x.length);
  if (!known.length) return [0, 1];
  return [Math.min(...known.map(({ x }) => x[0])), Math.max(...known.map(({ x }) => x[x.length - 1]))];
}

function xRange(low, high) {
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

// the next of 1, 2 and 5 times a power of ten, below or above
function rounded(value, to) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = to === Math.floor ? [5, 2, 1] : [1, 2, 5, 10];
  return power * steps.find((step) => (to === Math.floor ? step * power <= value : step * power >= value));
}

// the extremes of what lines have in view
function extremes(lines, [from, to], isLog) {
  let low = Infinity;
  let high = -Infinity;
  for (const { x, y } of lines) {
    for (let at = placeOf(x, from); at < x.length && x[at] <= to; at++) {
      const value = y[at];
      if ((value >= low && value <= high) || !isDrawn(value, isLog)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return [low, high];
}

function yRange(lines, view, isLog, options) {
  const [low, high] = extremes(lines, view, isLog);
  if (low > high) return isLog ? [0.1, 1] : [0, 1];
  const below = options.floor && isLog ? Math.min(low, ...options.floor.y.filter((value) => value > 0).map((value) => value / 3)) : low;
  if (isLog) return [rounded(below * 0.999, Math.floor), rounded(high * 1.001, Math.ceil)];
  const size = Math.max(Math.abs(low), Math.abs(high));
  const pad = low === high ? size * 0.05 || 0.5 : Math.max((high - low) * 0.06, size * FINEST);
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

// the first place in rising values that is not below one
function placeOf(values, value) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

function nearest({ x }, value) {
  const at = placeOf(x, value);
  return at === x.length || (at > 0 && value - x[at - 1] < x[at] - value) ? at - 1 : at;
}

/* The path of a line. Of points in one column of pixels the lowest and the highest are drawn, in their order: that covers what all would.
   A gap is where a value cannot be drawn. Few points, and those between gaps, are dots too. */
function pathOf(u, { x, y, width, alpha, dots = 24, isSmooth }, isLog) {
  const { left, top, width: across, height } = u.bbox;
  const { x: { min, max }, y: scale } = u.scales;
  const scaled = isLog ? Math.log10 : (value) => value;
  const [foot, head] = [scaled(scale.min), scaled(scale.max)];
  const stroke = new Path2D();
  const fill = new Path2D();
  const radius = (alpha ? 4.5 : 2.5) * devicePixelRatio;
  const first = Math.max(0, placeOf(x, min) - 1);
  const last = Math.min(x.length - 1, placeOf(x, max));
  const hasDots = !isSmooth && x.length <= dots;
  const dot = (px, py) => { fill.moveTo(px + radius, py); fill.arc(px, py, radius, 0, 2 * Math.PI); };
  let column = NaN, count = 0, isOpen = false, length = 0, lowX, lowY, highX, highY;
  const flush = () => {
    const ends = lowX <= highX ? [[lowX, lowY], [highX, highY]] : [[highX, highY], [lowX, lowY]];
    for (const [px, py] of count > 1 ? ends : ends.slice(0, count)) {
      if (isOpen) stroke.lineTo(px, py);
      else stroke.moveTo(px, py);
      isOpen = true;
    }
    count = 0;
  };
  const close = () => {
    flush();
    if (length === 1 && !hasDots) dot(lowX, lowY);
    isOpen = false;
    length = 0;
  };
  for (let at = first; at <= last; at++) {
    if (!isDrawn(y[at], isLog)) { close(); continue; }
    const px = left + ((x[at] - min) / (max - min)) * across;
    const py = top + height - ((scaled(y[at]) - foot) / (head - foot)) * height;
    if (Math.floor(px) !== column) { flush(); column = Math.floor(px); }
    if (!count || py > lowY) { lowX = px; lowY = py; }
    if (!count || py < highY) { highX = px; highY = py; }
    count++;
    length++;
    if (hasDots) dot(px, py);
  }
  close();
  return { stroke: width ? stroke : null, fill, clip: null, band: null, gaps: null, flags: 1 };
}

// what is provisional is a hollow point, as uPlot draws those of a series: on its line, filled with the ground
function hollow({ x, y, colour, provisional = [], alpha }, isLog) {
  const paths = (u) => {
    const { min, max } = u.scales.x;
    const radius = (alpha ? 4.5 : 3.5) * devicePixelRatio;
    const rings = new Path2D();
    for (const at of provisional) {
      if (!isDrawn(y[at], isLog) || x[at] < min || x[at] > max) continue;
      const [px, py] = [u.valToPos(x[at], "x", true), u.valToPos(y[at], "y", true)];
      rings.moveTo(px + radius, py);
      rings.arc(px, py, radius, 0, 2 * Math.PI);
    }
    return { stroke: rings, fill: rings, clip: null, flags: 3 };
  };
  return { show: provisional.length > 0, filter: () => null, stroke: colour, fill: theme.surface, width: 1.75, paths };
}

function drawBeneath(u, options) {
  const { ctx, bbox } = u;
  const toX = (value) => u.valToPos(value, "x", true);
  const toY = (value) => Math.min(bbox.top + bbox.height, Math.max(bbox.top, u.valToPos(value, "y", true)));
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const { band, floor, mark } = options;
  if (band && band.x.length > 1) {
    ctx.beginPath();
    band.x.forEach((x, at) => ctx.lineTo(toX(x), toY(band.high[at])));
    for (let at = band.x.length - 1; at >= 0; at--) ctx.lineTo(toX(band.x[at]), toY(band.low[at]));
    ctx.fillStyle = translucent(theme.soft, 0.22);
    ctx.fill();
  }
  if (floor && floor.x.length) {
    const steps = floor.x.flatMap((x, at) => [[at ? x : u.scales.x.min, floor.y[at]], [at + 1 < floor.x.length ? floor.x[at + 1] : u.scales.x.max, floor.y[at]]]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, bbox.top + bbox.height);
    steps.forEach(([x, y]) => ctx.lineTo(toX(x), toY(y)));
    ctx.lineTo(bbox.left + bbox.width, bbox.top + bbox.height);
    ctx.fillStyle = translucent(theme.soft, 0.16);
    ctx.fill();
    ctx.fillStyle = theme.soft;
    ctx.font = `${11 * devicePixelRatio}px ${theme.sans}`;
    ctx.textAlign = "right";
    ctx.fillText("noise", bbox.left + bbox.width - 8 * devicePixelRatio, toY(steps[steps.length - 1][1]) + 14 * devicePixelRatio);
  }
  if (mark !== undefined && mark >= u.scales.x.min && mark <= u.scales.x.max) {
    ctx.beginPath();
    ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.moveTo(toX(mark), bbox.top);
    ctx.lineTo(toX(mark), bbox.top + bbox.height);
    ctx.strokeStyle = theme.bad;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.stroke();
  }
  ctx.restore();
}

// a cross at the foot of the chart for each value that is no number
function drawOdd(u, lines) {
  const { ctx, bbox } = u;
  const half = 3.5 * devicePixelRatio;
  const y = bbox.top + bbox.height - 2 * half;
  ctx.save();
  ctx.lineWidth = 1.6 * devicePixelRatio;
  for (const line of lines) {
    if (line.isSmooth) continue;
    ctx.strokeStyle = line.colour;
    line.x.forEach((value, at) => {
      if (isDrawn(line.y[at]) || value < u.scales.x.min || value > u.scales.x.max) return;
      const x = u.valToPos(value, "x", true);
      ctx.beginPath();
      ctx.moveTo(x - half, y - half); ctx.lineTo(x + half, y + half);
      ctx.moveTo(x + half, y - half); ctx.lineTo(x - half, y + half);
      ctx.stroke();
    });
  }
  ctx.restore();
}

// what each line has where the pointer is: its nearest point, unless the line has not begun or has ended there
function pointed(u, lines) {
  const here = u.posToVal(u.cursor.left, "x");
  const reach = Math.abs(u.posToVal(u.cursor.left + REACHED, "x") - here);
  return lines.filter((line) => !line.isBeneath && line.x.length).flatMap((line) => {
    const at = nearest(line, here);
    const isWithin = here >= line.x[0] && here <= line.x[line.x.length - 1];
    return isWithin || Math.abs(line.x[at] - here) <= reach ? [{ line, x: line.x[at], value: line.y[at], isPart: line.provisional && line.provisional.includes(at), away: Math.abs(line.x[at] - here) }] : [];
  });
}

function showTip(u, tip, lines, options) {
  const { left, top } = u.cursor;
  let rows = left < 0 ? [] : pointed(u, lines);
  tip.hidden = !rows.length;
  u.over.querySelectorAll(".point").forEach((each) => each.remove());
  if (tip.hidden) return;
  const { x } = rows.reduce((best, row) => (row.away < best.away ? row : best));
  const all = rows.length;
  if (all > 10) {
    const here = u.posToVal(top, "y");
    const apart = ({ value }) => (Number.isFinite(value) ? Math.abs(value - here) : Infinity);
    rows = rows.sort((a, b) => apart(a) - apart(b) || 0).slice(0, 8);
  }
  for (const row of rows) {
    const [px, py] = [u.valToPos(row.x, "x"), u.valToPos(row.value, "y")];
    if (!(px >= 0 && px <= u.over.clientWidth && py >= 0 && py <= u.over.clientHeight)) continue;
    const point = element("i", { class: row.isPart ? "point hollow" : "point", "--colour": row.line.colour });
    point.style.transform = `translate(${px}px, ${py}px)`;
    tip.before(point);
  }
  tip.replaceChildren(
    element("b", { text: `${X_NAMES[options.axis]} ${xWords(options.axis, x)}` }),
    ...rows.map(({ line, value, isPart }) => element("div", {}, line.swatch(), element("span", { text: line.label }), element("b", { text: number(value) }), isPart ? "○" : null)),
    ...(rows.some(({ isPart }) => isPart) ? [element("span", { class: "soft", text: "○ provisional" })] : []),
    ...(all > rows.length ? [element("span", { class: "soft", text: `and ${all - rows.length} more` })] : []),
  );
  const isRight = left > u.over.clientWidth / 2;
  tip.style.left = isRight ? "auto" : `${left + 14}px`;
  tip.style.right = isRight ? `${u.over.clientWidth - left + 14}px` : "auto";
  tip.style.top = `${Math.max(0, Math.min(top - 20, u.over.clientHeight - tip.offsetHeight))}px`;
}

function followTouch(chart) {
  const follow = (event) => {
    const place = chart.over.getBoundingClientRect();
    chart.setCursor({ left: event.touches[0].clientX - place.left, top: event.touches[0].clientY - place.top });
  };
  for (const name of ["touchstart", "touchmove"]) chart.over.addEventListener(name, follow, { passive: true });
}

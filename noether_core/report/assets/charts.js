// Draw one chart with uPlot: lines that need not share their places on x, noise beneath them, values under the pointer.
const WHOLE = Array.from({ length: 45 }, (_, at) => [1, 2, 5][at % 3] * 10 ** Math.floor(at / 3)); // steps between updates that are named
const X_NAMES = { update: "update", epoch: "epoch", sample: "sample", time: "time" };

function xWords(axis, value) {
  return axis === "time" ? duration(value) : axis === "epoch" ? String(Number(value.toFixed(2))) : number(Math.round(value));
}

function xTick(axis, value) {
  if (axis === "time") return duration(value);
  if (Math.abs(value) < 1e4) return number(Number(value.toPrecision(6)));
  return Math.abs(value) < 1e6 ? `${tick(value / 1e3)}k` : `${tick(value / 1e6)}M`;
}

// Put lines on one x, as uPlot wants it: undefined where a line has no point, null where its value cannot be drawn.
function aligned(lines, isLog) {
  const all = new Float64Array(lines.reduce((sum, line) => sum + line.x.length, 0));
  let filled = 0;
  for (const line of lines) { all.set(line.x, filled); filled += line.x.length; }
  const xs = all.sort().filter((x, at) => at === 0 || x !== all[at - 1]);
  const ys = lines.map(({ x, y }) => {
    const values = new Array(xs.length);
    for (let at = 0, next = 0; next < x.length; at++) {
      if (xs[at] !== x[next]) continue;
      const value = y[next++];
      values[at] = Number.isFinite(value) && !(isLog && value <= 0) ? value : null;
    }
    return values;
  });
  return [xs, ...ys];
}

const canBeLog = (lines) => lines.some((line) => line.y.some((value) => value > 0));

/* Draw lines, each with x, y, label, colour, width, dash and, for a single one of several, run. Options: axis, log, band (x, low, high),
   mark (a place on x), floor (x, y: what lies below is noise). Returns the chart; `destroy` ends it. */
function drawChart(host, lines, options) {
  const isLog = options.log && canBeLog(lines);
  const data = aligned(lines, isLog);
  const tip = element("div", { class: "tip", hidden: true });
  const chart = new uPlot({
    width: Math.max(120, host.clientWidth), height: Math.max(120, host.clientHeight),
    legend: { show: false }, padding: [10, 18, 0, 0],
    cursor: { drag: { x: true, y: false, dist: 6 }, y: false, points: { size: (u, k) => (lines[k - 1].isBeneath ? 0 : 7), width: 0, fill: (u, k) => lines[k - 1].colour }, dataIdx: nearest },
    scales: { x: { time: false, range: xRange }, y: { distr: isLog ? 3 : 1, range: yRange(isLog, options) } },
    axes: [
      { ...axisLook(), ...(options.axis === "update" || options.axis === "sample" ? { incrs: WHOLE } : {}), size: 30, space: 56, values: (u, splits) => splits.map((value) => xTick(options.axis, value)) },
      { ...axisLook(isLog), size: (u, values) => Math.max(36, ...(values || []).map((text) => 6.4 * text.length + 16)), space: 34, values: (u, splits) => splits.map(tick) },
    ],
    series: [{}, ...lines.map((line) => ({
      stroke: line.alpha ? translucent(line.colour, line.alpha) : line.colour, width: line.width, dash: line.dash, spanGaps: false, pxAlign: 0,
      points: { show: !line.isSmooth && line.x.length <= (line.dots || 24), size: line.alpha ? 9 : 5, fill: line.alpha ? translucent(line.colour, line.alpha) : line.colour, width: 0 },
    }))],
    hooks: {
      drawAxes: [(u) => drawBeneath(u, options)],
      draw: [(u) => drawOdd(u, lines)],
      setCursor: [(u) => showTip(u, tip, lines, options)],
    },
  }, data, host);
  chart.over.append(tip);
  followTouch(chart);
  return chart;
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

function xRange(u, low, high) {
  if (low === null) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

// the next of 1, 2 and 5 times a power of ten, below or above
function rounded(value, to) {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = to === Math.floor ? [5, 2, 1] : [1, 2, 5, 10];
  return power * steps.find((step) => (to === Math.floor ? step * power <= value : step * power >= value));
}

function yRange(isLog, options) {
  return (u, low, high) => {
    if (low === null) return isLog ? [0.1, 1] : [0, 1];
    const below = options.floor && isLog ? Math.min(low, ...options.floor.y.filter((value) => value > 0).map((value) => value / 3)) : low;
    if (isLog) return [rounded(below * 0.999, Math.floor), rounded(high * 1.001, Math.ceil)];
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
    return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
  };
}

function nearest(u, k, at) {
  const values = u.data[k];
  if (values[at] !== null && values[at] !== undefined) return at;
  for (let away = 1; away < 400; away++) {
    for (const place of [at - away, at + away]) if (values[place] !== null && values[place] !== undefined) return place;
  }
  return null;
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
      if (Number.isFinite(line.y[at]) || value < u.scales.x.min || value > u.scales.x.max) return;
      const x = u.valToPos(value, "x", true);
      ctx.beginPath();
      ctx.moveTo(x - half, y - half); ctx.lineTo(x + half, y + half);
      ctx.moveTo(x + half, y - half); ctx.lineTo(x - half, y + half);
      ctx.stroke();
    });
  }
  ctx.restore();
}

function showTip(u, tip, lines, options) {
  const { left, top, idx, idxs } = u.cursor;
  tip.hidden = left < 0 || idx === null || idx === undefined;
  if (tip.hidden) return;
  let rows = lines.map((line, k) => ({ line, value: idxs[k + 1] === null ? undefined : u.data[k + 1][idxs[k + 1]] })).filter((row) => Number.isFinite(row.value) && !row.line.isBeneath);
  const all = rows.length;
  if (all > 10) {
    const here = u.posToVal(top, "y");
    rows = rows.sort((a, b) => Math.abs(a.value - here) - Math.abs(b.value - here)).slice(0, 8);
  }
  tip.replaceChildren(
    element("b", { text: `${X_NAMES[options.axis]} ${xWords(options.axis, u.data[0][idx])}` }),
    ...rows.map(({ line, value }) => element("div", {}, line.swatch(), element("span", { text: line.label }), element("b", { text: number(value) }))),
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

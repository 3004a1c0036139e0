// Smooth curves: each value is the mean of those around, weighted by a Gaussian over the axis and by how many values it stands for.
const REACH = 3; // standard deviations

// places and means of what a curve is smoothed by: of a thinned one the means of all its values, stretch by stretch
function groundOf(curve, values) {
  if (!curve.means) return { rows: rowsOf(curve), values };
  const means = unpack(curve.means);
  const edge = (at) => Math.trunc((at * curve.n) / means.length);
  return { rows: Float64Array.from(means, (_, at) => (edge(at) + edge(at + 1) - 1) / 2), values: means };
}

// what is not finite has no part in its neighbours, and stays a gap
function smoothed(x, y, width) {
  const result = new Float64Array(y.length).fill(NaN);
  for (let at = 0, first = 0; at < y.length; at++) {
    while (x[at] - x[first] > REACH * width) first++;
    if (!Number.isFinite(y[at])) continue;
    let sum = 0;
    let weights = 0;
    for (let k = first; k < y.length && x[k] - x[at] <= REACH * width; k++) {
      if (!Number.isFinite(y[k])) continue;
      const weight = Math.exp(-(((x[k] - x[at]) / width) ** 2) / 2);
      sum += weight * (y[k] - y[at]); // so that what is constant stays so to the bit
      weights += weight;
    }
    result[at] = y[at] + sum / weights;
  }
  return result;
}

// the smooth line of a curve, and beneath it what was logged, faintly
function smoothLines(report, curve, line, percent) {
  const clock = report.clocks[curve.clock];
  const { rows, values } = groundOf(curve, line.y);
  const x = axisAt(clock, state.axis, rows);
  const width = (percent / 100) * (x[x.length - 1] - x[0]);
  if (!(width > 0)) return [line];
  const faint = { ...line, width: 1, alpha: report.runs.length > 4 ? 0.2 : 0.32, dash: [], isBeneath: true };
  return [faint, { ...line, x, y: smoothed(x, values, width), provisional: [], isSmooth: true, width: line.alpha ? 5 : report.runs.length > 8 ? 1.5 : 2 }];
}

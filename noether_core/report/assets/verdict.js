// What a comparison found: the sentence, the ladder of stages, causes, the differences and their course.
const OUTCOMES = {
  same: { tone: "good", sign: "=", words: "The same" },
  differs: { tone: "bad", sign: "≠", words: "They part" },
  "cannot say": { tone: "open", sign: "?", words: "Cannot say" },
};
const SIGNS = { first: "≠", also: "≠", later: "✓", same: "✓", after: "·", missing: "·", unknown: "?" };
const FIRST_ROWS = 12;
const EXACT = 1e-12; // norms that are no further apart are of the same values, added in another order

function verdictHead(report) {
  const found = report.verdict;
  const { tone, sign, words } = OUTCOMES[found.outcome];
  const versus = found.labels.map((label, run) => element("span", { class: "chip" }, stroke(run, 2), element("span", { text: label })));
  return element("section", { class: `verdict tone-${tone}`, id: "verdict" },
    element("div", { class: "outcome" }, element("b", { text: sign, "aria-hidden": "true" }), element("span", { text: words }), element("span", { class: `versus ${report.runs.length ? "" : "always"}` }, ...versus)),
    element("h1", { text: found.sentence }),
    element("div", { class: "facts" },
      fact(number(found.compared), found.compared === 1 ? "pair compared" : "pairs compared"),
      found.outcome === "differs" ? fact(found.same_through ? `update ${number(found.same_through)}` : "no update", found.same_through ? "is the last that is the same" : "is the same") : null,
      found.differences.length ? fact(number(found.differences.length), found.differences.length === 1 ? "difference listed" : "differences listed") : null,
      found.has_twins ? fact("Noise", "measured by twins") : found.warnings.some((text) => text.includes("twins")) ? null : fact("No twins:", "noise is taken from floors, so this is less sure"),
    ),
    found.warnings.length ? element("ul", { class: "warnings" }, ...found.warnings.map((text) => element("li", { text }))) : null,
  );
}

const fact = (value, words) => element("span", {}, element("b", { text: value }), ` ${words}`);

function rungWords(rung) {
  if (rung.state === "first") return "first difference";
  if (rung.state === "also") return `${plural(rung.keys, "key")} too`;
  if (rung.state === "later") return `same, differs from update ${number(rung.update)} on`;
  if (rung.state === "after") return `not judged after the first difference${rung.update ? `, differs from update ${number(rung.update)} on` : ""}`;
  if (rung.state === "missing") return "not recorded";
  return rung.state === "same" ? `no difference${rung.update ? ` through update ${number(rung.update)}` : ""}` : "not known";
}

function ladder(report) {
  const rungs = report.verdict.ladder.map((rung) => element("li", { class: `rung ${rung.state}` },
    element("div", { class: "dot", text: SIGNS[rung.state], "aria-hidden": "true" }),
    element("div", { class: "stage", text: rung.stage }),
    element("div", { class: "words", text: rung.words }),
    element("div", { class: "state", text: rungWords(rung) }),
  ));
  const { first } = report.verdict;
  const title = first ? `Update ${number(first.update)}, stage by stage` : "A step, stage by stage";
  return section("ladder", title, "in the order in which it is computed", element("div", { class: "panel" }, element("ol", { class: "ladder" }, ...rungs)));
}

function causes(report) {
  const items = report.verdict.causes.map((cause) => element("li", { class: "cause" },
    element("h3", { text: cause.title }),
    element("div", { class: "score", title: "how well the evidence fits; no probability" }, element("div", { class: "meter" }, element("i", { "--share": `${Math.round(100 * cause.score)}%` })), element("span", { text: `fit ${Math.round(100 * cause.score)} %` })),
    cause.sentence && cause.sentence !== cause.title ? element("p", { text: cause.sentence }) : null,
    cause.evidence.length ? element("ul", {}, ...cause.evidence.map((text) => element("li", { text }))) : null,
  ));
  return section("causes", "Likely causes", "the best first; the fit is no probability", element("ol", { class: "causes" }, ...items));
}

const finite = (values) => Float64Array.from(values, (value) => (typeof value === "number" ? value : NaN));

// a wide card of lines over updates on a log scale; `found` gives them when it is drawn, each a label, x and y
function courseCard(words, found, options) {
  const plot = element("div", { class: "plot", role: "img", "aria-label": "relative difference over updates, on a log scale" });
  const names = element("div", { class: "lasts" });
  let current = null;
  const draw = () => {
    const lines = found().map((line, k) => ({
      ...line, colour: theme.series[(k + 1) % COLOURS], width: k ? 1.5 : 2.5, dash: [], dots: 40,
      swatch: () => element("span", { class: "stroke", "--colour": colourName(k + 1) }),
    }));
    names.replaceChildren(...lines.map((line) => element("span", { class: "mono" }, line.swatch(), line.label)));
    current = drawChart(plot, lines, { axis: "update", log: true, ...options });
  };
  lazily(plot, draw, () => { if (current) current.destroy(); current = null; });
  const title = element("div", { class: "card-top" }, element("h3", { text: "Relative difference over updates" }));
  return element("article", { class: "card course" }, title, element("div", { class: "note", text: words }), plot, names);
}

function courses(report) {
  const found = report.verdict;
  const lines = () => found.courses.map((course) => ({ x: Float64Array.from(course.update), y: finite(course.distance), label: course.key }));
  const [course] = found.courses;
  const floor = { x: course.update, y: [...finite(course.noise)].map((value) => value || 0) };
  return courseCard("log scale; the grey ground is the noise of the first key; the dashed line is the first difference", lines, { mark: found.first ? found.first.update : undefined, floor });
}

// of each stage the furthest that the norm of a key is apart at each update, where the runs logged it
function stagesApart(report) {
  const ofStage = new Map(report.verdict.ladder.map(({ stage }) => [stage, new Map()]));
  for (const chart of report.charts) {
    const [stage, ...rest] = chart.key.split("/");
    const isNorm = rest[rest.length - 1] === "norm" || /^total(@\d+)?$/.test(rest.join("/"));
    if (!ofStage.has(stage) || !isNorm || !chart.apart || !chart.apart.y) continue;
    const { update, y } = apartLine(report, chart);
    const furthest = ofStage.get(stage);
    y.forEach((value, at) => { if (value > (furthest.get(update[at]) || EXACT)) furthest.set(update[at], value); });
  }
  return [...ofStage].filter(([, found]) => found.size).map(([stage, found]) => {
    const x = Float64Array.from(found.keys()).sort();
    return { x, y: x.map((update) => found.get(update)), label: stage };
  });
}

// how far apart: of what differs first and after it, or, where nothing does, of each stage
function courseOf(report) {
  if (report.verdict.courses.length) return [courses(report)];
  return stagesApart(report).length ? [courseCard("log scale; of each stage's norms the one that is furthest apart", () => stagesApart(report), {})] : [];
}

// the curves of the key that differs first, or of the loss, and how far apart they are
function firstCurves(report) {
  const { first } = report.verdict;
  const own = report.charts.filter(({ key, apart }) => (first ? key === first.key || key.startsWith(`${first.key}/`) : apart && apart.n && key.startsWith("loss/")));
  const norm = own.find((chart) => chart.key.split("/").includes("norm")) || own[0];
  return norm ? [chartCard(report, norm, "h3", false), chartCard(report, norm, "h3", true)] : [];
}

function differences(report) {
  const { differences: rows, first } = report.verdict;
  const body = element("tbody", {});
  const more = element("button", { class: "more", type: "button" });
  let isAll = false;
  const fill = () => {
    const found = rows.filter((row) => matches(row[2]));
    const shown = isAll ? found : found.slice(0, FIRST_ROWS);
    body.replaceChildren(...shown.map(differenceRow(first)));
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${number(found.length)}`;
  };
  more.addEventListener("click", () => { isAll = true; fill(); });
  filters.push(fill);
  fill();
  const head = ["update", "key", "relative difference", "× noise", "ulps", "shape"].map((text, at) => element("th", { text, class: [0, 2, 3, 4].includes(at) ? "right" : "" }));
  const table = element("table", { class: "data differences" }, element("thead", {}, element("tr", {}, ...head)), body);
  return section("differences", "All differences", "by update, stage and order of computation", element("div", { class: "scroll" }, table), more);
}

const differenceRow = (first) => ([update, , key, distance, , times, ulps, shape]) => element("tr", { class: first && first.update === update && first.key === key ? "mark" : "" },
  element("td", { class: "right", text: number(update), "data-name": "update" }),
  element("td", { class: "mono", text: key }),
  element("td", { class: "right", text: rough(distance) }),
  element("td", { class: "right", text: `${rough(times)}×`, "data-name": "noise" }),
  element("td", { class: "right optional", text: ulps === null ? "" : rough(ulps) }),
  element("td", { class: "words", text: shape }),
);

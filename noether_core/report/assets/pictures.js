// Saved arrays as heat maps, with a slider over the updates; hovering says each cell's value.
const BLANK = [0, 0, 0];

// The colours of a scale: two arms where values have both signs, one where they have one; the middle is the page's own ground.
function ramp(low, high) {
  const [cold, middle, warm, deep] = ["cold", "middle", "warm", "deep"].map((name) => channels(theme[name]));
  const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
  if (low < 0 && high > 0) return { low: -most, high: most, stops: [cold, middle, warm] };
  if (high <= 0 && low < 0) return { low, high: Math.max(high, low / 1e3), stops: [cold, middle] };
  return { low: Math.min(low, high), high: high > low ? high : low + (Math.abs(low) || 1), stops: [middle, deep] };
}

function paint(canvas, panel, scale) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(panel.columns, panel.rows);
  const odd = channels(theme.odd);
  const cells = unpack(panel.cells);
  cells.forEach((value, at) => {
    const share = (value - scale.low) / (scale.high - scale.low);
    const colour = Number.isNaN(value) ? odd : blend(scale.stops, Math.min(1, Math.max(0, share))) || BLANK;
    image.data.set([...colour, 255], 4 * at);
  });
  canvas.width = panel.columns;
  canvas.height = panel.rows;
  context.putImageData(image, 0, 0);
}

const gradient = (stops) => `linear-gradient(to right, ${stops.map((stop) => `rgb(${stop.join(",")})`).join(",")})`;

function ends(panels) {
  const known = panels.filter((panel) => panel.ends);
  if (!known.length) return [0, 0];
  return [Math.min(...known.map((panel) => panel.ends[0])), Math.max(...known.map((panel) => panel.ends[1]))];
}

function cellWords(panel, row, column) {
  const value = unpack(panel.cells)[row * panel.columns + column];
  const span = (at, count, of) => {
    const from = Math.floor((at * of) / count);
    const to = Math.floor(((at + 1) * of) / count) - 1;
    return to > from ? `${from}–${to}` : `${from}`;
  };
  const isPooled = panel.rows !== panel.of[0] || panel.columns !== panel.of[1];
  const place = panel.of[0] === 1 ? span(column, panel.columns, panel.of[1]) : `${span(row, panel.rows, panel.of[0])}, ${span(column, panel.columns, panel.of[1])}`;
  return [`[${place}]`, number(value), isPooled ? "largest of these" : ""];
}

function heat(report, panel, scale) {
  const isApart = panel.run < 0;
  const canvas = element("canvas", { role: "img", "aria-label": isApart ? "difference" : report.runs[panel.run].label });
  const tip = element("div", { class: "tip", hidden: true });
  const tall = panel.rows === 1 ? 34 : Math.min(190, Math.max(60, (180 * panel.rows) / panel.columns));
  canvas.style.height = `${tall}px`;
  canvas.addEventListener("pointermove", (event) => {
    const at = canvas.getBoundingClientRect();
    const column = Math.min(panel.columns - 1, Math.max(0, Math.floor(((event.clientX - at.left) / at.width) * panel.columns)));
    const row = Math.min(panel.rows - 1, Math.max(0, Math.floor(((event.clientY - at.top) / at.height) * panel.rows)));
    const [place, value, note] = cellWords(panel, row, column);
    tip.hidden = false;
    tip.replaceChildren(element("div", {}, element("span", { class: "soft", text: place }), element("b", { text: value })), ...(note ? [element("span", { class: "soft", text: note })] : []));
    tip.style.left = `${Math.min(event.clientX - at.left + 12, Math.max(0, at.width - 130))}px`;
    tip.style.top = `${event.clientY - at.top + 44}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  const name = isApart ? `${report.runs[1].label} − ${report.runs[0].label}` : report.runs[panel.run].label;
  const caption = element("figcaption", { title: name }, isApart ? null : element("span", { class: "stroke", "--colour": colourName(panel.run) }), element("span", { text: name }));
  if (panel.rows * panel.columns === 1) return element("figure", { class: "heat" }, caption, element("div", { class: "lone", text: number(unpack(panel.cells)[0]) }));
  paint(canvas, panel, scale);
  const bar = element("i", {});
  bar.style.background = gradient(scale.stops);
  return element("figure", { class: "heat" },
    caption,
    canvas,
    element("div", { class: "ramp" }, element("span", { text: rough(scale.low, 3) }), bar, element("span", { text: rough(scale.high, 3) })),
    panel.odd ? element("div", { class: "note bad", text: `${plural(panel.odd, "value")} NaN or infinite` }) : null,
    tip,
  );
}

function pictureCard(report, picture) {
  const panels = element("div", { class: "panels" });
  const where = element("span", { class: "where" });
  const { frames } = picture;
  const slider = element("input", { type: "range", min: 0, max: frames.length - 1, value: frames.length - 1, "aria-label": `update of ${picture.name}` });
  const about = frames[0].panels[0];
  const draw = () => {
    panels.style.minHeight = "";
    const frame = frames[Number(slider.value)];
    const all = frames.flatMap((each) => each.panels);
    const shared = ramp(...ends(all.filter((panel) => panel.run >= 0)));
    const own = ramp(...ends(all.filter((panel) => panel.run < 0)));
    where.textContent = `update ${number(frame.update)}`;
    panels.replaceChildren(...frame.panels.filter((panel) => !state.hidden.has(panel.run)).map((panel) => {
      const isSame = panel.run < 0 && panel.ends && panel.ends[0] === 0 && panel.ends[1] === 0 && !panel.odd;
      return isSame ? element("figure", { class: "heat" }, element("figcaption", { text: "difference" }), calm("=", "the same to the bit")) : heat(report, panel, panel.run < 0 ? own : shared);
    }));
  };
  slider.addEventListener("input", draw);
  const card = element("article", { class: "card" },
    element("div", { class: "card-top" }, keyTitle("h4", picture.name)),
    element("div", { class: "lasts", text: `${about.dtype || ""} ${about.shape.length ? about.shape.join(" × ") : "scalar"} · ${picture.interval}` }),
    panels,
    element("div", { class: "scrub" }, where, frames.length > 1 ? slider : null),
  );
  panels.style.minHeight = "120px";
  lazily(panels, draw, () => { panels.style.minHeight = `${panels.offsetHeight}px`; panels.replaceChildren(); });
  card.key = picture.name;
  return card;
}

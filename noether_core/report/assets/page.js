// The page: what the data has, from top to bottom; the bar's controls; what is filtered.
const filters = []; // called when the filter changes
const FIRST_CARDS = 48; // of a group, before it is asked for more
const SMOOTHEST = 20; // (100 / 20) ** 2 is 25 percent
const SMALL = 3; // keys of a group that stands on its own
const report = JSON.parse(document.getElementById("data").textContent);
const content = document.getElementById("content");
const rail = document.getElementById("rail");

// every word of the query is somewhere in the key
const matches = (key) => state.query.split(/\s+/).every((word) => key.toLowerCase().includes(word));

function section(id, title, note, ...children) {
  return element("section", { id, "aria-label": title }, element("div", { class: "heading" }, element("h2", { text: title }), note ? element("span", { class: "soft small", text: note }) : null), ...children);
}

// Groups by the first part of the name; those of one or two keys stand together.
function grouped(items, name) {
  const groups = new Map();
  for (const item of items) {
    const slash = item[name].indexOf("/");
    const part = slash > 0 ? item[name].slice(0, slash) : item[name];
    groups.set(part, [...(groups.get(part) || []), item]);
  }
  const isSmall = ([, found]) => found.length < SMALL;
  const small = [...groups].filter(isSmall);
  if (small.length < 2) return [...groups];
  const names = small.map(([part]) => part);
  return [[names.slice(0, 4).join(", ") + (names.length > 4 ? ", …" : ""), small.flatMap(([, found]) => found)], ...[...groups].filter((each) => !isSmall(each))];
}

function cardGroups(id, title, note, items, name, makeCard) {
  const whole = section(id, title, note);
  const links = [];
  const groups = grouped(items, name);
  groups.forEach(([part, found], place) => {
    const cards = element("div", { class: "cards" });
    const more = element("button", { class: "more", type: "button" });
    const count = element("span", { class: "soft small" });
    const group = element("div", { class: "group", id: `${id}-${place}` }, groups.length > 1 ? element("div", { class: "heading" }, element("h3", { text: part }), count) : null, cards, more);
    const made = new Map();
    let most = FIRST_CARDS;
    const fill = () => {
      const wanted = found.filter((item) => matches(item[name]));
      const shown = wanted.slice(0, most).map((item) => {
        if (!made.has(item)) made.set(item, makeCard(report, item));
        return made.get(item);
      });
      if (shown.length !== cards.children.length || shown.some((card, at) => card !== cards.children[at])) cards.replaceChildren(...shown);
      group.hidden = !wanted.length;
      more.hidden = wanted.length <= most;
      more.textContent = `Show ${number(Math.min(FIRST_CARDS, wanted.length - most))} more of ${number(wanted.length)}`;
      count.textContent = number(wanted.length);
      return wanted.length;
    };
    more.addEventListener("click", () => { most += FIRST_CARDS; fill(); });
    filters.push(fill);
    fill();
    whole.append(group);
    links.push([`${id}-${place}`, part, found.length]);
  });
  const none = element("p", { class: "empty", text: "No key has that in its name." });
  const check = () => { none.hidden = items.some((item) => matches(item[name])); };
  filters.push(check);
  check();
  whole.append(none);
  return { whole, links };
}

function link(id, words, count, look) {
  const target = element("a", { href: `#${id}`, class: look }, element("span", { text: words }), count === undefined ? null : element("span", { text: number(count) }));
  target.addEventListener("click", (event) => { event.preventDefault(); document.getElementById(id).scrollIntoView(); });
  rail.append(target);
}

function choice(label, options, chosen, choose) {
  const group = element("div", { class: "choice", role: "group", "aria-label": label });
  for (const [value, words] of options) {
    group.append(element("button", { type: "button", "aria-pressed": String(value === chosen), text: words, onclick: (event) => {
      for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
      choose(value);
      redrawAll();
    } }));
  }
  return group;
}

// how smooth curves are, in percent of the axis: finer steps for little
function slider() {
  const shown = element("output", { class: "soft" });
  const input = element("input", { type: "range", min: 0, max: 100, step: 1, value: Math.round(Math.sqrt(report.view.smooth || 0) * SMOOTHEST), "aria-label": "Smooth, in percent of the axis" });
  const say = () => { shown.textContent = state.smooth ? `${Number(state.smooth.toPrecision(2))} %` : "off"; };
  let isWaiting = false;
  input.addEventListener("input", () => {
    state.smooth = (input.value / SMOOTHEST) ** 2;
    say();
    if (!isWaiting) requestAnimationFrame(() => { isWaiting = false; redrawAll(); });
    isWaiting = true;
  });
  say();
  return element("label", { class: "smooth", title: "Each value becomes the mean of those around it" }, element("span", { text: "Smooth" }), input, shown);
}

function controls() {
  const axes = [["update", "Update"], ["epoch", "Epoch"], ["sample", "Sample"], ["time", "Time"]];
  const known = axes.filter(([axis]) => report.clocks.some((clock) => axis in clock));
  const host = document.getElementById("controls");
  if (!report.charts.length) return;
  const { axis = "update", log = false, smooth = 0 } = report.view;
  Object.assign(state, { axis: known.some(([each]) => each === axis) ? axis : "update", log, smooth });
  if (known.length > 1) host.append(choice("Over", known, state.axis, (chosen) => { state.axis = chosen; }));
  host.append(choice("Scale", [[false, "Linear"], [true, "Log"]], log, (isLog) => { state.log = isLog; }));
  host.append(slider());
  if (report.runs.length === 2) host.append(choice("Show", [[false, "Values"], [true, "Difference"]], false, (isApart) => { state.apart = isApart; }));
}

// a button for each run, which shows or hides it; those of one run go together
function chips() {
  return report.runs.map((run, place) => {
    const chip = element("button", { class: "chip", type: "button", "aria-pressed": "true", title: "show or hide" }, stroke(place, report.runs.length), element("span", { text: run.label }));
    chip.dataset.run = place;
    chip.addEventListener("click", () => {
      if (!state.hidden.delete(place)) state.hidden.add(place);
      document.querySelectorAll(`.chip[data-run="${place}"]`).forEach((each) => each.setAttribute("aria-pressed", String(!state.hidden.has(place))));
      redrawAll();
    });
    return chip;
  });
}

function legend() {
  if (report.runs.length > 1) document.getElementById("legend").append(...chips());
}

// on a phone what the bar has beside its field unfolds below it
function fold() {
  const [button, strip] = ["fold", "strip"].map((id) => document.getElementById(id));
  const set = (isOpen) => button.setAttribute("aria-expanded", String(isOpen));
  button.hidden = [...strip.children].every((each) => !each.children.length);
  button.addEventListener("click", () => set(button.getAttribute("aria-expanded") === "false"));
  document.addEventListener("click", (event) => { if (!event.target.closest(".bar")) set(false); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") set(false); });
}

function intro() {
  const names = report.runs.map((run) => run.label);
  const title = names.length === 1 ? names[0] : names.length <= 3 ? `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}` : plural(names.length, "run");
  const versus = names.length < 2 ? [] : chips();
  const counts = [plural(report.charts.length, "key"), ...(report.arrays.pictures.length ? [plural(report.arrays.pictures.length, "saved array")] : [])];
  return element("section", { class: "intro" }, element("h1", { text: title, title }), element("p", { class: "soft", text: [...(report.where ? [report.where] : []), ...counts].join(" · ") }), element("div", { class: "versus" }, ...versus));
}

function problems() {
  const found = [...report.runs.flatMap((run) => run.problems.map((text) => `${run.label}: ${text}`)), ...report.arrays.problems];
  if (report.left_out) found.push(`${plural(report.left_out, "curve")} more than fit on a page; give fewer runs, or look at them with read_run`);
  return found.length ? section("problems", "What to know of these files", "", element("ul", { class: "warnings" }, ...found.map((text) => element("li", { text })))) : null;
}

function texts() {
  const rows = report.texts.flatMap((each) => each.newest.map(([update, value]) => element("tr", {}, element("td", { class: "mono", text: each.key }), element("td", { text: report.runs[each.run].label }), element("td", { class: "right", text: number(update), "data-name": "update" }), element("td", { text: value }))));
  const head = ["key", "run", "update", "text"].map((text) => element("th", { text }));
  return section("texts", "Texts", "the newest of each key", element("div", { class: "scroll" }, element("table", { class: "data" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
}

function add(part, id, words, count) {
  if (!part) return;
  content.append(part);
  if (id) link(id, words, count, "main");
}

function build() {
  const found = report.verdict;
  document.title = found ? `${OUTCOMES[found.outcome].words}: ${found.labels.join(" and ")}` : `${report.runs.map((run) => run.label).join(", ").slice(0, 80)} – ${document.title}`;
  add(found ? verdictHead(report) : intro(), found ? "verdict" : null, "Answer");
  if (found) {
    add(ladder(report), "ladder", "Stages");
    if (found.causes.length) add(causes(report), "causes", "Causes", found.causes.length);
    const near = [...courseOf(report), ...firstCurves(report)];
    if (near.length) add(section("course", "How far apart", "", element("div", { class: "pair" }, ...near)), "course", "How far apart");
    if (found.differences.length) add(differences(report), "differences", "Differences", found.differences.length);
  }
  add(problems(), "problems", "Problems");
  if (!found && !report.charts.length && !report.texts.length) add(element("p", { class: "empty", text: "Nothing is logged yet." }));
  for (const [id, title, items, name, makeCard] of [["curves", "Curves", report.charts, "key", chartCard], ["arrays", "Saved arrays", report.arrays.pictures, "name", pictureCard]]) {
    if (!items.length) continue;
    const { whole, links } = cardGroups(id, title, "", items, name, makeCard);
    add(whole, id, title, items.length);
    if (links.length > 1) links.forEach(([place, words, count]) => link(place, words, count, "inner"));
  }
  if (report.texts.length) add(texts(), "texts", "Texts", report.texts.length);
  if (report.tables.length) add(settingsSection(report), "settings", "Settings");
  content.classList.toggle("one-curve", report.charts.length === 1);
  content.classList.toggle("single", content.children.length === 2); // the page's title says it all
}

function listen() {
  const search = document.getElementById("search");
  search.addEventListener("input", () => { state.query = search.value.trim().toLowerCase(); filters.forEach((fill) => fill()); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !(document.activeElement instanceof HTMLInputElement)) { event.preventDefault(); search.focus(); }
    if (event.key === "Escape" && document.activeElement === search) { search.value = ""; search.dispatchEvent(new Event("input")); search.blur(); }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readTheme(); redrawAll(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; measure(); requestAnimationFrame(redrawAll); } });
  addEventListener("beforeprint", () => {
    readTheme();
    for (const { picture } of document.querySelectorAll(".plot, .panels")) { picture.clear(); picture.size = null; show(picture); }
  });
  addEventListener("afterprint", () => { readTheme(); redrawAll(); });
}

function measure() {
  document.documentElement.style.setProperty("--bar", `${document.getElementById("bar").offsetHeight}px`);
}

readTheme();
controls();
legend();
fold();
measure();
build();
listen();

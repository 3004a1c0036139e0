// Settings, versions and configs side by side; what differs stands out, and can be shown alone.
function settingsSection(report) {
  const parts = report.tables.map((table) => settingsTable(report, table));
  return section("settings", "What they were made of", report.runs.length > 1 ? "side by side" : "", ...parts);
}

const differs = (row) => new Set(row.slice(1)).size > 1;

function settingsTable(report, table) {
  const columns = table.columns === "compared" ? report.verdict.labels : report.runs.map((run) => run.label);
  const body = element("tbody", {});
  const odd = table.rows.filter(differs).length;
  const box = element("input", { type: "checkbox" });
  box.checked = odd > 0 && table.rows.length > 14;
  const fill = () => {
    const shown = box.checked ? table.rows.filter(differs) : table.rows;
    body.replaceChildren(...shown.map((row) => element("tr", { class: columns.length > 1 && differs(row) ? "differs" : "" }, ...row.map((value, at) => element("td", { class: at ? "" : "mono", text: value === null ? "–" : value, "data-name": at && columns.length > 1 ? columns[at - 1] : null })))));
  };
  box.addEventListener("change", fill);
  fill();
  const words = columns.length === 1 ? plural(table.rows.length, "entry").replace("entrys", "entries") : odd ? `${number(odd)} of ${number(table.rows.length)} differ` : `all ${number(table.rows.length)} are equal`;
  return element("div", { class: "group" },
    element("div", { class: "heading" }, element("h3", { text: table.title }), element("span", { class: "soft small", text: words }), odd && columns.length > 1 ? element("label", { class: "check" }, box, "only what differs") : null),
    element("div", { class: "scroll" }, element("table", { class: "data settings" }, element("thead", {}, element("tr", {}, element("th", { text: "" }), ...columns.map((text) => element("th", { text })))), body)),
    table.left_out ? element("p", { class: "note", text: `${number(table.left_out)} more have no room here` }) : null,
    ...(table.texts || []).map((text, run) => (text ? element("details", {}, element("summary", { text: `config.yaml of ${columns[run]}` }), element("pre", { text })) : null)),
  );
}

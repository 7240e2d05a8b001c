"use strict";
(async () => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const saved = (() => { try { return JSON.parse(sessionStorage.getItem(location.pathname)) || {}; } catch { return {}; } })();
  const save = () => { try { sessionStorage.setItem(location.pathname, JSON.stringify(saved)); } catch { /* private mode */ } };

  // Elements are made from text, never from markup.
  const make = (tag, text, ...children) => {
    const element = document.createElement(tag);
    if (text) element.textContent = text;
    element.append(...children);
    return element;
  };

  const bytes = Uint8Array.from(atob(byId("data").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = JSON.parse(await new Response(stream).text());

  // ---- charts
  const options = { renderer: "svg", actions: false, tooltip: { theme: "none" } };
  const views = {};
  const draw = async (element, spec) => {
    spec.config.legend.columns = Math.max(1, Math.floor(element.clientWidth / 270));
    const { view } = await vegaEmbed(element, spec, options);
    const svg = element.querySelector("svg");
    if (svg) {
      // Vega listens for the pointer alone, so a name in a legend that picks is made a button.
      const picks = JSON.stringify(spec).includes('"bind":"legend"');
      svg.setAttribute("role", picks ? "group" : "img");
      svg.setAttribute("aria-label", spec.description);
      if (picks) pressable(svg);
    }
    return view;
  };
  const pressable = (svg) => {
    const dress = () => all("g.role-legend-label text:not([tabindex])", svg).forEach((name) => {
      name.tabIndex = 0;
      name.setAttribute("role", "button");
      name.setAttribute("aria-label", `${name.textContent} alone`);
      // What a "graphics-symbol" holds is for no reader; a legend of buttons is a group.
      for (let box = name.parentElement; box !== svg; box = box.parentElement) if (box.getAttribute("role") === "graphics-symbol") box.setAttribute("role", "group");
    });
    dress();
    new MutationObserver(dress).observe(svg, { childList: true, subtree: true }); // what is drawn anew
    svg.addEventListener("keydown", (event) => {
      const on = { Enter: event.target, " ": event.target, Escape: svg }[event.key];
      if (!on) return;
      event.preventDefault();
      on.dispatchEvent(new MouseEvent("click", { bubbles: true, view: window }));
    });
  };
  // ---- cards
  const MATH = "http://www.w3.org/1998/Math/MathML";
  const formula = (lines) => {
    const sides = (i) => `<mtd>${data.sides[i]}</mtd>`;
    const rows = lines.map(([left, right]) => `<mtr>${sides(left)}<mtd><mo>=</mo></mtd>${sides(right)}</mtr>`).join("");
    const parsed = new DOMParser().parseFromString(`<math xmlns="${MATH}" display="block"><mtable displaystyle="true">${rows}</mtable></math>`, "application/xml");
    return document.importNode(parsed.documentElement, true);
  };
  // The vertical range where training spends its time: a loss that explodes far out is cut.
  const spanOf = (own, other) => {
    const range = (values) => {
      const reach = data.margins[data.margins.length - 1];
      const inner = (values || []).filter((y, i) => y !== null && Math.abs(data.margins[i]) <= 0.6 * reach);
      return inner.length ? [Math.min(...inner), Math.max(...inner)] : [-1, 1];
    };
    let [low, high] = range(own);
    if (other) {
      const [a, b] = range(other);
      if (b - a < 20 * (high - low) && high - low < 20 * (b - a)) [low, high] = [Math.min(low, a), Math.max(high, b)];
    }
    const room = 0.08 * (high - low) || 0.5;
    return [low - room, high + room];
  };
  // The margins that a card's own lanes met in training, as steps within the reach of its curve.
  const densityOf = (card) => (card.density || []).map((share, i) => {
    const reach = data.margins[data.margins.length - 1];
    const [from, to] = [data.edges[i], data.edges[i + 1]].map((x) => Math.min(Math.max(x, -reach), reach));
    return { name: card.name, shown: card.name, beta: data.beta, from, to, share };
  }).filter((row) => row.from < row.to);
  const curveOf = (place, what) => {
    const spec = structuredClone(data.charts[what] || data.charts.loss);
    const card = data.cards[place];
    const lines = [];
    const add = (name, values) => values && values.forEach((y, i) => lines.push({ name, shown: name, beta: data.beta, margin: data.margins[i], [what]: y }));
    add(card.name, card[what]);
    const names = [card.name];
    const base = data.baseline_place === null || data.baseline_place === place ? null : data.cards[data.baseline_place];
    if (base && base.name !== card.name) { add(base.name, base[what]); names.push(base.name); }
    const top = spec.layer[spec.layer.length - 1];
    top.data = { values: lines };
    top.layer[0].encoding.y.scale = { zero: false, domain: spanOf(card[what], base && base[what]), nice: false };
    top.layer[0].encoding.color.legend = null;
    top.layer[0].encoding.color.scale = { domain: names, range: names.map((name) => (name === data.baseline ? "var(--soft)" : "var(--accent)")) };
    if (spec.layer.length > 1) {
      const rows = [card, ...(names.length > 1 ? [base] : [])].flatMap(densityOf);
      const highest = Math.max(0, ...rows.filter((row) => !(row.from < 0 && 0 < row.to)).map((row) => row.share));
      spec.layer[0].data = { values: rows };
      spec.layer[0].encoding.color = top.layer[0].encoding.color;
      spec.layer[0].encoding.y.scale = { domain: [0, 1.25 * highest || 1], nice: false };
    }
    spec.params = [{ name: "beta", value: data.beta }];
    spec.height = 150;
    return spec;
  };
  const fill = async (element, place, drawn = true) => {
    const card = data.cards[place];
    const left = make("div"), right = make("div");
    const part = (root, title, ...children) => root.append(make("h3", title), ...children);
    if (card.math.length) {
      const box = make("div"); box.className = "formula"; box.tabIndex = 0; box.setAttribute("role", "region"); box.setAttribute("aria-label", "formula");
      box.append(formula(card.math));
      part(left, "Formula", box);
    }
    if (card.thought) part(left, card.how === "library" ? "Reference" : "Thought", make("p", card.thought));
    if (card.source) {
      const source = make("pre", card.source); source.tabIndex = 0; source.setAttribute("aria-label", "source");
      part(left, "Source", source);
    }
    const made = [card.how, card.generation === null ? "" : `generation ${card.generation}`, card.by && `by ${card.by}`, card.arm !== "search" ? `for the control ${card.arm.replaceAll("_", " ")}` : ""];
    part(right, "Made", make("p", made.filter(Boolean).join(", ")));
    if (card.parents.length) {
      const line = make("p");
      card.parents.forEach(([at, name], i) => {
        const link = make("button", name); link.type = "button"; link.className = "open";
        link.addEventListener("click", () => reveal(at));
        line.append(i ? ", " : "", link);
      });
      part(right, "Parents", line);
    }
    if (card.failures.length) part(right, "Failures", make("ul", "", ...card.failures.slice(0, 20).map((text) => make("li", text)), ...(card.failures.length > 20 ? [make("li", `and ${card.failures.length - 20} more`)] : [])));
    element.replaceChildren(left, right);
    if (drawn && card.loss && data.charts.loss) {
      for (const [what, title] of [["loss", "Loss"], ["slope", "Derivative"]]) {
        const chart = make("div"); chart.className = "chart small";
        part(right, `${title} against the margin, β ${data.beta}` + (data.baseline_place === null || data.baseline_place === place ? "" : `, and ${data.baseline}'s in grey`), chart);
        await draw(chart, curveOf(place, what));
      }
    }
    if (card.export) {
      const command = make("pre", card.export); command.tabIndex = 0; command.setAttribute("aria-label", "export");
      part(right, "For PyTorch; --to trl, jax or latex for others", command);
    }
    if (card.hash) part(right, "Hash", make("p", card.hash.slice(0, 16)));
  };

  const table = byId("all");
  const buttonOf = (place) => table && table.querySelector(`button.open[data-card="${place}"]`);
  const toggle = async (button, open) => {
    const row = button.closest("tr");
    const next = row.nextElementSibling;
    const there = next && next.classList.contains("detail") ? next : null;
    const wanted = open === undefined ? !there : open;
    saved.open = (saved.open || []).filter((name) => name !== button.textContent);
    if (wanted) saved.open.push(button.textContent);
    save();
    button.setAttribute("aria-expanded", String(wanted));
    if (there && !wanted) there.remove();
    if (there || !wanted) return;
    const detail = make("tr", "", make("td", "", make("div")));
    detail.className = "detail";
    detail.firstChild.colSpan = row.children.length;
    const card = detail.firstChild.firstChild;
    card.className = "card";
    row.after(detail);
    await fill(card, Number(button.dataset.card));
  };
  const reveal = async (place) => {
    const button = buttonOf(place);
    if (!button) return;
    if (button.closest("tr").hidden) { for (const f of all("[data-filter=all], [data-status-filter=all], [data-how-filter=all]")) { f.value = ""; f.dispatchEvent(new Event("input")); } }
    await toggle(button, true);
    button.scrollIntoView({ block: "center" });
    button.focus({ preventScroll: true });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("table button.open[data-card]");
    if (!button || button.closest(".card")) return;
    if (table && table.contains(button)) toggle(button); else reveal(Number(button.dataset.card));
  });

  // ---- sorting and filtering
  const value = (row, column) => {
    const cell = row.children[column];
    const text = cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
    return text === "" || Number.isNaN(Number(text)) ? text : Number(text);
  };
  const sort = (sorted, column, direction) => {
    const body = sorted.tBodies[0];
    const groups = [];
    for (const row of [...body.rows]) row.classList.contains("detail") ? groups[groups.length - 1].push(row) : groups.push([row]);
    const keys = new Map(groups.map((group) => [group, value(group[0], column)]));
    const compare = (a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last either way
      if (typeof x === "number" && typeof y === "number") return direction * (x - y);
      return direction * String(x).localeCompare(String(y), "en");
    };
    body.append(...groups.sort(compare).flat());
    all("thead th", sorted).forEach((th, i) => (i === column ? th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending") : th.removeAttribute("aria-sort")));
  };
  for (const sorted of all("table[data-sort]")) {
    all("thead th", sorted).forEach((th, column) => th.querySelector("button").addEventListener("click", () => {
      const now = th.getAttribute("aria-sort");
      const numbers = th.classList.contains("num") && column > 0;
      const direction = now ? (now === "ascending" ? -1 : 1) : numbers ? -1 : 1;
      saved[`sort ${sorted.id}`] = [column, direction]; save();
      sort(sorted, column, direction);
    }));
    const rows = all("tbody tr", sorted);
    const words = rows.map((row) => {
      const button = row.querySelector("button.open");
      const card = button && data.cards[Number(button.dataset.card)];
      return [row.textContent, card ? `${card.thought} ${card.failures.join(" ")}` : ""].join(" ").toLowerCase();
    });
    const control = (name) => document.querySelector(`[data-${name}="${sorted.id}"]`);
    const [find, status, how] = [control("filter"), control("status-filter"), control("how-filter")];
    const filter = () => {
      let shown = 0;
      rows.forEach((row, i) => {
        const ok = (!find || words[i].includes(find.value.trim().toLowerCase())) && (!status || !status.value || row.dataset.status === status.value) && (!how || !how.value || row.dataset.how === how.value);
        row.hidden = !ok;
        shown += ok;
        const next = row.nextElementSibling;
        if (next && next.classList.contains("detail")) next.hidden = !ok;
      });
      control("count").textContent = `${shown} of ${rows.length}`;
    };
    for (const [name, input] of [["filter", find], ["status", status], ["how", how]]) {
      if (!input) continue;
      const key = `${name} ${sorted.id}`;
      if (saved[key]) input.value = saved[key];
      input.addEventListener("input", () => { saved[key] = input.value; save(); filter(); });
    }
    if (saved[`sort ${sorted.id}`]) sort(sorted, ...saved[`sort ${sorted.id}`]);
    filter();
  }
  // ---- charts: first those in sight, and the rest one after the other while the page is already of use
  const beta = byId("beta");
  const atBeta = (id) => views[id] && views[id].signal("beta", Number(beta.value)).runAsync();
  if (beta) {
    if (saved.beta && all("option", beta).some((o) => o.value === saved.beta)) beta.value = saved.beta;
    beta.addEventListener("change", () => { saved.beta = beta.value; save(); atBeta("loss"); atBeta("slope"); });
  }
  const reveals = (event, item) => {
    const place = item && item.datum && data.cards.findIndex((card) => card.name === item.datum.name);
    if (place >= 0 && item.datum.name !== undefined) reveal(place);
  };
  const chart = (element) => async () => {
    const { id } = element;
    views[id] = await draw(element, structuredClone(data.charts[id]));
    if (beta && (id === "loss" || id === "slope")) await atBeta(id);
    if (id === "proposals" || id === "lineage") views[id].addEventListener("click", reveals);
  };
  const waiting = [
    ...all(".card").map((element) => [element, () => fill(element, Number(element.dataset.card))]),
    ...Object.keys(data.charts).map(byId).filter(Boolean).map((element) => [element, chart(element)]),
  ];
  const inSight = ([element]) => {
    const { top, bottom } = element.getBoundingClientRect();
    return top < innerHeight && bottom > 0;
  };
  const breath = () => new Promise((go) => setTimeout(go));
  const next = async (place) => { const [[, work]] = waiting.splice(place, 1); await work(); await breath(); };
  for (let place; (place = waiting.findIndex(inSight)) >= 0;) await next(place);
  if (table) for (const name of [...(saved.open || [])]) {
    const place = data.cards.findIndex((card) => card.name === name);
    if (place >= 0) await toggle(buttonOf(place), true);
  }

  // ---- a run that goes on
  const live = byId("live");
  if (live) {
    if (saved.live === false) live.checked = false;
    live.addEventListener("change", () => { saved.live = live.checked; save(); });
    setInterval(() => { if (live.checked && !document.hidden) location.reload(); }, 20000);
  }
  // ---- on paper: nothing is folded away or cut, and the leaderboard's objectives have their cards
  addEventListener("beforeprint", () => {
    for (const folded of all("details:not([open])", byId("run"))) { folded.open = true; folded.dataset.folded = "yes"; }
    const buttons = all("#board button.open").slice(0, 10);
    const section = make("section", "", make("h2", "The objectives of the leaderboard"));
    section.id = "paper";
    if (buttons.length) byId("candidates").before(section);
    for (const button of buttons) {
      const card = make("div");
      card.className = "card";
      section.append(make("h3", button.textContent), card);
      fill(card, Number(button.dataset.card), false);
    }
    for (const math of all(".formula math")) math.style.fontSize = `${Math.min(1, 600 / math.getBoundingClientRect().width)}em`;
  });
  addEventListener("afterprint", () => {
    for (const folded of all("[data-folded]")) { folded.open = false; delete folded.dataset.folded; }
    if (byId("paper")) byId("paper").remove();
    for (const math of all(".formula math")) math.style.fontSize = "";
  });

  const reached = (state) => { document.documentElement.dataset[state] = "yes"; performance.mark(state); };
  reached("ready");
  while (waiting.length) await next(Math.max(0, waiting.findIndex(inSight)));
  reached("drawn");
})();

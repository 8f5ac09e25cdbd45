"use strict";
// The browser of completions: only the ones shown are in the document, however many there are.
(() => {
  const source = document.getElementById("completions");
  if (!source) return;
  const { runs, prompts, rows } = JSON.parse(source.textContent);
  const [form, list, PAGE] = [document.getElementById("filter"), document.getElementById("list"), 20];
  const paid = rows.map((row) => row.w).filter((value) => value !== null);
  const [most, least] = [paid.reduce((a, b) => Math.max(a, b), -Infinity), paid.reduce((a, b) => Math.min(a, b), Infinity)];
  let [found, start] = [rows, 0];

  const element = (name, text, kind = "") => {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind;
    return made;
  };
  // Of each token a digit, the sampler's probability, and the log of the learner's over it (orchestration/page/tokens.py).
  const BOUNDS = [1.02, 1.1, 1.25, 2];
  const known = (hundredths) => hundredths !== null && hundredths !== undefined;
  const away = (hundredths) => BOUNDS.filter((bound) => Math.exp(Math.abs(hundredths) / 100) >= bound).length;
  const told = (tenth, hundredths) => [
    known(hundredths) ? `ratio ${Number(Math.exp(hundredths / 100).toPrecision(3))}` : "not learned from",
    tenth === "-" ? "sampler's probability not known" : `sampler's probability 0.${tenth} or more`].join(" · ");
  const kind = (tenth, hundredths) => {
    const by = form.elements.colour.value;
    if (by === "probability") return `k k${tenth}`;
    if (by !== "ratio" || !known(hundredths) || !away(hundredths)) return "k";
    return `k ${hundredths > 0 ? "up" : "down"}${away(hundredths)}`;
  };
  const coloured = (text, { l: lengths, k: tenths, o: ratios }) => {
    if (!tenths) return element("pre", text);
    const [made, characters] = [element("pre", ""), [...text]];
    let at = 0;
    lengths.forEach((length, index) => {
      const [tenth, hundredths] = [tenths[index], ratios && ratios[index]];
      const token = element("span", characters.slice(at, at + length).join(""), kind(tenth, hundredths));
      token.title = told(tenth, hundredths);
      made.append(token);
      at += length;
    });
    return made;
  };
  const legend = () => {
    const swatch = (text, name) => element("span", text, name);
    const [low, high] = [BOUNDS.map((bound) => (1 / bound).toFixed(2)), BOUNDS.map(String)];
    const parts = {
      ratio: () => ["probability by the learner before the update, over the sampler's:",
        ...[4, 3, 2, 1].map((n) => swatch(n === 4 ? `up to ${low[3]}` : `to ${low[n - 1]}`, `k down${n}`)), swatch("about 1, or not learned from", "k"),
        ...[1, 2, 3, 4].map((n) => swatch(`from ${high[n - 1]}`, `k up${n}`))],
      probability: () => ["the sampler's probability:", ...[0, 1, 3, 5, 7, 9].map((n) => swatch(`from 0.${n}`, `k k${n}`))],
    }[form.elements.colour.value];
    document.getElementById("legend").replaceChildren(...(parts ? parts().flatMap((part) => [part, " "]) : []));
  };
  const beginning = (line) => (line.length > 160 ? `${line.slice(0, 160).replace(/\s\S*$/, "")} …` : line);
  const number = (value) => (value === null || value === undefined ? "no score" : Number(value.toFixed(4)).toString());

  const judged = (row) => row.h !== null && row.h !== undefined;

  // An episode: of each turn what the model said, what it was paid, and what the environment answered.
  const played = (row) => row.g.flatMap(([start, stop, text, answer, reward, end, version, total, rewritten, cut], index) => [
    ...(rewritten ? [element("p", "the template rewrote what came before: a sequence of its own from here", "turn")] : []),
    element("p", [`turn ${index + 1}`, `${stop - start} tokens`, end, `version ${version}`,
      reward === null ? "paid nothing" : `paid ${number(reward)}`, total === null ? "" : `answers for ${number(total)}`]
      .filter(Boolean).join(" · "), "turn"),
    coloured(text, cut),
    ...(answer ? [element("pre", answer, "given")] : []),
  ]);

  for (const category of [...new Set(rows.map((row) => row.c).filter(Boolean))].sort()) {
    form.elements.category.append(new Option(category, category));
  }
  form.elements.category.parentElement.hidden = form.elements.category.length < 2;
  form.elements.answer.parentElement.hidden = !rows.some(judged);

  const cuts = rows.flatMap((row) => [row, ...(row.g || []).map((turn) => turn[9])]);
  for (const [name, kept] of [["ratio", "o"], ["probability", "k"]]) {
    if (!cuts.some((cut) => cut[kept])) form.querySelector(`option[value=${name}]`).remove();
  }
  form.elements.colour.parentElement.hidden = form.elements.colour.length < 2;

  const show = () => {
    legend();
    const page = found.slice(start, start + PAGE);
    list.replaceChildren(...page.map((row) => {
      const card = element("article", "", row.w === null ? "one" : row.w >= most ? "one most" : row.w <= least ? "one least" : "one");
      const rewards = Object.entries(row.r).map(([name, value]) => `${name} ${number(value)}`).join(", ");
      const parts = [runs.length > 1 ? runs[row.u] : "", row.i || "", `step ${row.s}`, row.p, row.c ? `category ${row.c}` : "",
        judged(row) ? (row.h ? "right" : "wrong") : "", rewards,
        `total ${number(row.w)}`, row.a === null ? "" : `advantage ${number(row.a)}`, `${row.n} tokens`, row.e, `sampled at version ${row.v}`];
      card.append(element("header", parts.filter(Boolean).join(" · ")));
      const prompt = document.createElement("details");
      prompt.append(element("summary", beginning(prompts[row.q].trim().split("\n").pop()) || "prompt"),
        element("pre", (row.f ? `(${row.f} characters before)\n` : "") + prompts[row.q], "prompt"));
      card.append(prompt, ...(row.g ? played(row) : [coloured(row.t, row)]));
      if (row.d) card.append(element("p", `the episode failed: ${row.d}`, "why"));
      const why = [...Object.entries(row.z || {}), ...Object.entries(row.x || {})];
      if (why.length) card.append(element("p", why.map(([name, told]) => `${name}: ${told}`).join(" · "), "why"));
      return card;
    }));
    form.querySelector("output").textContent = found.length ? `${start + 1} to ${Math.min(start + PAGE, found.length)} of ${found.length}` : "none";
    document.getElementById("previous").disabled = start === 0;
    document.getElementById("next").disabled = start + PAGE >= found.length;
  };

  const filter = () => {
    const { step, text, paid: earned, category, answer } = Object.fromEntries(new FormData(form));
    const [sought, lower] = [text.toLowerCase(), text ? prompts.map((prompt) => prompt.toLowerCase()) : []];
    found = rows.filter((row) =>
      (!step || row.s === Number(step)) &&
      (!sought || row.t.toLowerCase().includes(sought) || lower[row.q].includes(sought) || row.p === text || row.i === text) &&
      (!category || row.c === category) &&
      (!answer || String(row.h) === answer) &&
      (!earned || (earned === "null" ? row.w === null : row.w !== null && (earned === "most" ? row.w >= most : row.w <= least))));
    start = 0;
    show();
  };
  form.addEventListener("input", (event) => (event.target.name === "colour" ? show() : filter()));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => { start = Math.max(0, start - PAGE); show(); });
  document.getElementById("next").addEventListener("click", () => { start += PAGE; show(); });
  // Where nothing hovers, a tap tells what a token's title says.
  document.addEventListener("click", ({ target }) => {
    const said = document.getElementById("told");
    document.querySelectorAll(".tapped").forEach((token) => token.classList.remove("tapped"));
    said.hidden = !target.matches("#list .k");
    if (said.hidden) return;
    target.classList.add("tapped");
    said.textContent = `${JSON.stringify(target.textContent)}: ${target.title}`;
  });
  // A step named in the address, as `page.html#step=12`, is shown at once.
  // So is a completion, as `page.html#id=12/0/3`; links of the alarms do it.
  const follow = () => {
    const [step, id] = [/[#&]step=(\d+)/.exec(location.hash), /[#&]id=([\d/]+)/.exec(location.hash)];
    if (!step && !id) return;
    form.elements.step.value = step ? step[1] : "";
    form.elements.text.value = id ? id[1] : "";
    filter();
    form.scrollIntoView();
  };
  window.addEventListener("hashchange", follow);
  filter();
  follow();
})();

// Filters the answers of the page. Works on elements that are there already: nothing is fetched or made from text.
"use strict";
(() => {
  const controls = document.getElementById("answer-controls");
  if (!controls) return;
  const rows = [...document.querySelectorAll(".sample")];
  const fields = [...controls.querySelectorAll("select, input")];
  const count = document.getElementById("answer-count");
  const more = document.getElementById("answer-more");
  const PAGE = 40;
  let shown = PAGE;

  const value = (name) => {
    const field = controls.elements[name];
    return field.type === "checkbox" ? field.checked : field.value;
  };

  function matches(row, wanted) {
    if (wanted.set && row.dataset.set !== wanted.set) return false;
    if (wanted.lang && row.dataset.lang !== wanted.lang) return false;
    if (wanted.wrong && !row.querySelector(".answer.wrong-language")) return false;
    return !wanted.text || row.textContent.toLocaleLowerCase().includes(wanted.text);
  }

  // The filters stand in the address (#lang=sw&wrong=on), so that a view can be sent to somebody.
  function restore() {
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const field = controls.elements[name];
      if (!field) continue;
      if (field.type === "checkbox") field.checked = text === "on";
      else field.value = text;
    }
  }

  function remember() {
    const set = fields.filter((f) => (f.type === "checkbox" ? f.checked : f.value));
    const text = new URLSearchParams(set.map((f) => [f.name, f.type === "checkbox" ? "on" : f.value])).toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname);
  }

  function update() {
    const wanted = {
      set: value("set"), lang: value("lang"), wrong: value("wrong"),
      text: value("text").trim().toLocaleLowerCase(),
    };
    const run = value("run");
    const step = value("step");
    let found = 0;
    for (const row of rows) {
      const hit = matches(row, wanted);
      found += hit;
      row.hidden = !hit || found > shown;
      for (const answer of row.querySelectorAll(".answer")) {
        answer.hidden = (run && answer.dataset.run !== run) || (step === "last" && !("last" in answer.dataset));
      }
    }
    count.textContent = `${found.toLocaleString()} of ${rows.length.toLocaleString()} prompts`;
    more.hidden = found <= shown;
  }

  for (const field of fields) {
    field.addEventListener("input", () => { shown = PAGE; update(); remember(); });
  }
  controls.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { shown += PAGE; update(); });
  window.addEventListener("hashchange", () => { restore(); update(); });
  controls.hidden = false;
  restore();
  update();
})();

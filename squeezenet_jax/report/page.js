// Lets a person explore the report: a heading sorts its table, a point says which run it is. Without it the page is whole.
// The page is XML as well, so no ampersand and no less-than stands here.
"use strict";
(() => {
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  // Tables. A heading sorts by its column, numbers from the largest; again, the other way; again, as it was.
  const words = new Intl.Collator(undefined, {numeric: true});

  function makeSortable(table) {
    const headings = all("thead th", table), body = table.tBodies[0], planned = Array.from(body.rows);
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      const isNumber = planned.some((row) => row.cells[column].dataset.value);
      const orders = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
      button.addEventListener("click", () => {
        const order = [...orders, null][orders.indexOf(heading.getAttribute("aria-sort")) + 1];
        headings.forEach((each) => each.removeAttribute("aria-sort"));
        if (order) heading.setAttribute("aria-sort", order);
        body.append(...(order ? sorted(planned, column, isNumber, order === "ascending" ? 1 : -1) : planned));
      });
    });
    table.classList.add("sortable");
    const hint = document.createElement("span");
    hint.className = "hint";
    hint.textContent = " A heading sorts by its column.";
    table.caption.append(hint);
  }

  // What is undefined comes last in either order.
  function sorted(rows, column, isNumber, sign) {
    const text = (row) => isNumber ? row.cells[column].dataset.value : row.cells[column].textContent;
    const compare = (a, b) => sign * (isNumber ? Number(text(a)) - Number(text(b)) : words.compare(text(a), text(b)));
    return [...rows.filter(text).sort(compare), ...rows.filter((row) => !text(row))];
  }

  // Figures. A point is marked, with its run or row wherever else that is on the page, and its text is shown beside it.
  const NEAR = 14, TOUCHING = 2; // px: from the pointer to a point, and between points that are said together
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  function centre(point) {
    const box = (point.querySelector("use") || point).getBoundingClientRect();
    return {x: box.left + box.width / 2, y: box.top + box.height / 2, height: box.height};
  }

  // By row, of which the mean comes before the runs.
  function inOrder(a, b) {
    return a.dataset.row - b.dataset.row || ("seed" in a.dataset) - ("seed" in b.dataset);
  }

  function hide() {
    tip.hidden = true;
    all(".on").forEach((each) => each.classList.remove("on"));
  }

  function show(points) {
    hide();
    for (const {dataset: {row, seed}} of points) {
      const part = points[0].closest("section, main");
      const same = seed === undefined ? ":not([data-seed])" : `[data-seed="${seed}"]`;
      all(`tr[data-row="${row}"], .point[data-row="${row}"]${same}`, part).forEach((each) => each.classList.add("on"));
    }
    tip.replaceChildren(...points.map((point) => {
      const [name, ...lines] = point.getAttribute("aria-label").split("\n");
      const part = document.createElement("p"), bold = document.createElement("b");
      bold.textContent = name;
      part.append(bold, ["", ...lines].join("\n"));
      return part;
    }));
    tip.hidden = false;
    const at = centre(points[0]), width = tip.offsetWidth, height = tip.offsetHeight, far = at.height / 2 + 8;
    const left = Math.min(Math.max(at.x - width / 2, 6), document.documentElement.clientWidth - width - 6);
    const top = at.y - far - height > 0 ? at.y - far - height : at.y + far;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }

  function makeExplorable(figure) {
    const points = all(".point", figure).sort(inOrder);
    if (!points.length) return;
    figure.setAttribute("role", "group"); // of an image, nothing inside can be reached
    points.forEach((point, place) => {
      const title = point.querySelector("title"); // which the browser would show as well
      point.setAttribute("aria-label", title.textContent);
      point.setAttribute("role", "img");
      point.setAttribute("tabindex", place ? -1 : 0);
      title.remove();
      point.addEventListener("focus", () => {
        points.forEach((each) => each.setAttribute("tabindex", each === point ? 0 : -1));
        show([point]);
      });
      point.addEventListener("blur", hide);
      point.addEventListener("keydown", (event) => {
        const next = {ArrowRight: place + 1, ArrowDown: place + 1, ArrowLeft: place - 1, ArrowUp: place - 1,
          Home: 0, End: points.length - 1}[event.key];
        if (next === undefined) return;
        event.preventDefault();
        points.at(next % points.length).focus();
      });
    });
    const look = (event) => {
      const far = points.map((point) => {
        const at = centre(point);
        return Math.hypot(at.x - event.clientX, at.y - event.clientY);
      });
      const nearest = points[far.indexOf(Math.min(...far))], at = centre(nearest);
      const touches = (point) => TOUCHING >= Math.hypot(centre(point).x - at.x, centre(point).y - at.y);
      if (Math.min(...far) > NEAR) hide();
      else show([nearest, ...points.filter((point) => point !== nearest).filter(touches)]);
    };
    figure.addEventListener("pointermove", look);
    figure.addEventListener("pointerdown", look); // a finger does not move before it touches
    figure.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse") hide();
    });
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
  document.addEventListener("pointerdown", (event) => { // a finger elsewhere
    if (!event.target.closest("figure svg")) hide();
  });
  all("table").forEach(makeSortable);
  all("figure svg").forEach(makeExplorable);
})();

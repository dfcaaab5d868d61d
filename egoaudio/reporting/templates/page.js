"use strict";
// What a reader can do with the page: sort and search tables, hear clips. Nothing is loaded from anywhere; sounds lie in the page.
(() => {
  const sounds = JSON.parse(document.getElementById("sounds").textContent);
  const each = (selector, act, root = document) => root.querySelectorAll(selector).forEach(act);
  each("[data-scripted]", (element) => { element.hidden = false; });

  // ------------------------------------------------------------------------------------------- tables and lists
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (one, other) => {
    if (typeof one === "number") {
      if (Number.isNaN(one) || Number.isNaN(other)) return Number.isNaN(one) - Number.isNaN(other);
      return one - other;
    }
    return one.localeCompare(other, undefined, { numeric: true });
  };
  const sortBy = (table, header, column) => {
    const numbers = header.classList.contains("number");
    const falling = header.ariaSort === "none" || !header.ariaSort ? numbers : header.ariaSort === "ascending";
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort((one, other) => {
      const missing = Number.isNaN(one[0]) || Number.isNaN(other[0]); // last, whichever way it is sorted
      return missing || !falling ? compare(one[0], other[0]) : compare(other[0], one[0]);
    });
    body.append(...rows.map((pair) => pair[1]));
    each("thead th", (other) => other.removeAttribute("aria-sort"), table);
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  };
  each("table[data-sortable]", (table) => {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (header.dataset.fixed !== undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header, column));
      header.append(button);
    });
  });
  each("input[data-filter]", (input) => {
    const list = document.getElementById(input.dataset.filter);
    const entries = list.tBodies ? [...list.tBodies[0].rows] : [...list.children];
    const status = document.getElementById(input.dataset.status);
    input.addEventListener("input", () => {
      const words = input.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
      let found = 0;
      entries.forEach((entry) => {
        const text = (entry.dataset.name || entry.textContent).toLocaleLowerCase();
        entry.hidden = !words.every((word) => text.includes(word));
        found += !entry.hidden;
      });
      status.textContent = words.length ? `${found} of ${entries.length} found` : "";
    });
  });

  // ---------------------------------------------------------------------------------------------------- sound
  const audio = document.getElementById("player");
  let playing = null; // { card, button, cursor }
  const stop = () => {
    audio.pause();
    if (!playing) return;
    playing.button.setAttribute("aria-pressed", "false");
    playing.cursor.remove();
    playing = null;
  };
  const draw = () => {
    if (!playing) return;
    const { offset, length } = playing.card.dataset; // of the sound's start in the picture, and the picture's length, in seconds
    const place = (audio.currentTime + Number(offset)) / Number(length);
    playing.cursor.hidden = place < 0 || place > 1;
    playing.cursor.style.left = `${100 * place}%`;
    requestAnimationFrame(draw);
  };
  const play = (card, seconds) => {
    stop();
    const button = card.querySelector(".play");
    const cursor = document.createElement("div");
    cursor.className = "cursor";
    card.querySelector(".view").append(cursor);
    button.setAttribute("aria-pressed", "true");
    playing = { card, button, cursor };
    audio.src = `data:audio/webm;base64,${sounds[card.dataset.sound]}`;
    audio.currentTime = seconds;
    audio.play().then(draw, stop);
  };
  audio.addEventListener("ended", stop);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  each(".clip[data-sound]", (card) => {
    card.querySelector(".play").addEventListener("click", () => {
      if (playing && playing.card === card) stop();
      else play(card, 0);
    });
    card.querySelector("img").addEventListener("click", (event) => {
      const box = event.target.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * Number(card.dataset.length) - Number(card.dataset.offset);
      play(card, Math.max(0, place));
    });
  });
})();

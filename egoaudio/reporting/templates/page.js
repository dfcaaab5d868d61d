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
  // What is played is a place: { key of its sound, holder and button, place(time): where the cursor stands, told(time) }.
  const audio = document.getElementById("player");
  let playing = null;
  const stop = () => {
    audio.pause();
    if (!playing) return;
    playing.button.setAttribute("aria-pressed", "false");
    playing.cursor.remove();
    playing = null;
  };
  const draw = () => {
    if (!playing) return;
    const left = playing.place(audio.currentTime);
    playing.cursor.hidden = left === null;
    playing.cursor.style.left = left;
    if (playing.told) playing.told(audio.currentTime);
    requestAnimationFrame(draw);
  };
  const play = (what, seconds) => {
    stop();
    const cursor = document.createElement("div");
    cursor.className = "cursor";
    what.holder.append(cursor);
    what.button.setAttribute("aria-pressed", "true");
    playing = { ...what, cursor };
    audio.src = `data:audio/webm;base64,${sounds[what.key]}`;
    audio.currentTime = seconds;
    audio.play().then(draw, stop);
  };
  const isPlaying = (button) => playing !== null && playing.button === button;
  audio.addEventListener("ended", stop);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  each(".clip[data-sound]", (card) => {
    const offset = Number(card.dataset.offset); // of the sound's start in the picture, and the picture's length, in seconds
    const length = Number(card.dataset.length);
    const button = card.querySelector(".play");
    const place = (time) => {
      const share = (time + offset) / length;
      return share >= 0 && share <= 1 ? `${100 * share}%` : null;
    };
    const what = { key: card.dataset.sound, holder: card.querySelector(".view"), button, place };
    button.addEventListener("click", () => (isPlaying(button) ? stop() : play(what, 0)));
    card.querySelector("img").addEventListener("click", (event) => {
      const box = event.target.getBoundingClientRect();
      play(what, Math.max(0, ((event.clientX - box.left) / box.width) * length - offset));
    });
  });
  window.egoaudio = { each, play, stop, isPlaying };
})();

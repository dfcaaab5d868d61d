"use strict";
// Time lines of recordings: segments are found here as evaluation/segments.py finds them, for any threshold, shown and saved.
(() => {
  const { each, play, stop, isPlaying } = window.egoaudio;
  const data = JSON.parse(document.getElementById("heard-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const ROUNDING_SECONDS = 1e-6;
  const WIDTH = 1000, HEIGHT = 24; // of a lane, in the units of its SVG
  const MOST_POINTS = 500; // of a curve

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  const timesOf = ({ count, first, step, last, begins, ends, follows }) => {
    if (begins !== undefined) {
      return { begins: new Float64Array(bytes(begins)), ends: new Float64Array(bytes(ends)), follows: new Uint8Array(bytes(follows)) };
    }
    const starts = Float64Array.from({ length: count }, (_, number) => first + step * number);
    const stops = Float64Array.from({ length: count }, (_, number) => (number + 1 < count ? starts[number + 1] : last));
    return { begins: starts, ends: stops, follows: new Uint8Array(count).fill(1).fill(0, 0, 1) };
  };

  // ------------------------------------------------------------------------------------------ scores, segments
  const logit = (score) => {
    const inside = Math.min(Math.max(score, data.edge), 1 - data.edge);
    return Math.log(inside) - Math.log1p(-inside);
  };
  const sigmoid = (value) => 0.5 * (1 + Math.tanh(0.5 * value));
  const probability = (score, one) =>
    data.calibrated ? Math.fround(sigmoid(one.slope * logit(score) + one.intercept)) : score;
  const invert = (share, one) =>
    data.calibrated && share > 0 && share < 1 ? sigmoid((logit(share) - one.intercept) / one.slope) : share;
  // From when on a class is heard, and until when: of its own, or what one probability for all classes comes to.
  const limitsOf = (one, share) => {
    if (share === null) return { onset: one.onset ?? Infinity, offset: one.offset ?? Infinity };
    const onset = invert(share, one);
    return { onset, offset: Math.min(invert(data.offset_ratio * share, one), onset) };
  };
  const findSegments = (scores, times, one, share) => {
    const { onset, offset } = limitsOf(one, share);
    const { begins, ends, follows } = times;
    const found = [];
    let open = null; // the stretch that is not below the offset: { first, last, reached }
    const close = () => {
      if (open && open.reached !== null) found.push({ first: open.reached, last: open.last });
      open = null;
    };
    for (let clip = 0; clip < scores.length; clip += 1) {
      if (!follows[clip] || !(scores[clip] >= offset)) close();
      if (scores[clip] >= offset) {
        open = open || { first: clip, last: clip, reached: null };
        open.last = clip;
        if (open.reached === null && scores[clip] >= onset) open.reached = clip;
      }
    }
    close();
    const merged = [];
    found.forEach(({ first, last }) => {
      const before = merged[merged.length - 1];
      let sum = 0, peak = 0;
      for (let clip = first; clip <= last; clip += 1) {
        const value = probability(scores[clip], one);
        sum += value;
        peak = Math.max(peak, value);
      }
      const own = { start: begins[first], stop: ends[last], peak, sum, count: last - first + 1 };
      if (before && own.start - before.stop <= data.merge_gap_seconds + ROUNDING_SECONDS) {
        Object.assign(before, { stop: own.stop, peak: Math.max(before.peak, peak), sum: before.sum + sum, count: before.count + own.count });
      } else merged.push(own);
    });
    return merged
      .filter((each_) => each_.stop - each_.start >= data.min_seconds - ROUNDING_SECONDS)
      .map(({ start, stop, peak, sum, count }) => ({ start, stop, score: peak, mean: Math.fround(sum / count) }));
  };

  // --------------------------------------------------------------------------------------------------- drawing
  const recordings = data.recordings.map((recording, number) => {
    const times = timesOf(recording.times);
    const all = new Float32Array(bytes(recording.scores));
    const size = times.begins.length;
    const tracks = recording.columns.map((column, place) => ({
      column,
      one: data.classes[column],
      scores: all.subarray(place * size, (place + 1) * size),
      segments: [],
    }));
    return { ...recording, times, tracks, root: document.querySelector(`[data-recording="${number}"]`) };
  });
  const svg = (name, attributes, holder) => {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    holder.append(made);
    return made;
  };
  const inSeconds = (seconds) => `${seconds.toFixed(2)} s`;
  const onClock = (seconds) => {
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
    return `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${String(rest).padStart(2, "0")}`;
  };
  const drawCurve = (recording, track, lane) => {
    const { begins, ends } = recording.times;
    const step = Math.max(1, Math.ceil(begins.length / MOST_POINTS));
    const points = [];
    for (let clip = 0; clip < begins.length; clip += step) {
      let value = 0;
      for (let next = clip; next < Math.min(clip + step, begins.length); next += 1) value = Math.max(value, probability(track.scores[next], track.one));
      const x = (WIDTH * (begins[clip] + ends[Math.min(clip + step, begins.length) - 1])) / 2 / recording.duration;
      points.push(`${x.toFixed(1)},${(HEIGHT - 1 - value * (HEIGHT - 2)).toFixed(1)}`);
    }
    svg("polyline", { class: "curve", points: points.join(" "), "vector-effect": "non-scaling-stroke" }, lane.querySelector("svg"));
  };
  const drawSegments = (recording, track, lane) => {
    const group = lane.querySelector(".segments");
    group.replaceChildren();
    track.segments.forEach(({ start, stop, score }) => {
      const place = { x: (WIDTH * start) / recording.duration, width: Math.max(2, (WIDTH * (stop - start)) / recording.duration) };
      const title = document.createElementNS(SVG, "title");
      title.textContent = `${inSeconds(start)} to ${inSeconds(stop)}: ${(100 * score).toFixed(0)} %`;
      svg("rect", { class: "segment", y: 2, height: HEIGHT - 10, ...place }, group).append(title);
    });
    const heard = track.segments.map(({ start, stop }) => `${inSeconds(start)} to ${inSeconds(stop)}`).join(", ");
    lane.querySelector("svg").setAttribute("aria-label", `${lane.dataset.name}: heard ${heard || "nowhere"}; ${lane.dataset.truth}`);
  };
  const listSegments = (recording) => {
    const body = recording.root.querySelector(".segment-table tbody");
    const rows = recording.tracks.flatMap((track) => track.segments.map((segment) => ({ ...segment, track })));
    rows.sort((one, other) => one.start - other.start || one.track.column - other.track.column);
    body.replaceChildren(
      ...rows.map(({ start, stop, score, track }) => {
        const row = document.createElement("tr");
        const name = document.createElement("th");
        name.scope = "row";
        const text = document.createElement("bdi");
        text.textContent = recording.root.querySelector(`[data-column="${track.column}"]`).dataset.name;
        name.append(text);
        row.append(name);
        [inSeconds(start), inSeconds(stop), (100 * score).toFixed(0)].forEach((value) => {
          const cell = row.insertCell();
          cell.className = "number";
          cell.textContent = value;
        });
        if (recording.sound) {
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = "▶ Play from there";
          button.addEventListener("click", () => playFrom(recording, start));
          row.insertCell().append(button);
        }
        return row;
      }),
    );
  };

  // ----------------------------------------------------------------------------------------------------- sound
  const statusOf = (recording, text) => { recording.root.querySelector(".said").textContent = text; };
  const whatOf = (recording) => {
    const lanes = recording.root.querySelector(".lanes");
    const strip = recording.root.querySelector(".strip");
    const position = recording.root.querySelector(".position");
    const place = (time) => `${strip.offsetLeft + (strip.offsetWidth * (time + recording.sound_start)) / recording.duration}px`;
    const told = (time) => {
      position.value = time + recording.sound_start;
      position.setAttribute("aria-valuetext", inSeconds(time + recording.sound_start));
      recording.root.querySelector(".now").textContent = onClock(time + recording.sound_start);
    };
    return { key: recording.sound, holder: lanes, button: recording.root.querySelector(".play"), place, told };
  };
  const playFrom = (recording, seconds) => {
    const time = seconds - recording.sound_start;
    if (time < -ROUNDING_SECONDS || seconds > recording.sound_stop) {
      statusOf(recording, `There is no sound at ${inSeconds(seconds)}: this page holds ${inSeconds(recording.sound_start)} to ${inSeconds(recording.sound_stop)}.`);
      return;
    }
    statusOf(recording, "");
    play(whatOf(recording), Math.max(0, time));
  };
  recordings.filter((recording) => recording.sound).forEach((recording) => {
    const button = recording.root.querySelector(".play");
    const position = recording.root.querySelector(".position");
    button.addEventListener("click", () => (isPlaying(button) ? stop() : playFrom(recording, Number(position.value))));
    position.addEventListener("input", () => playFrom(recording, Number(position.value)));
    each(".strip, .lane", (lane) => {
      lane.addEventListener("click", (event) => {
        const box = lane.getBoundingClientRect();
        playFrom(recording, ((event.clientX - box.left) / box.width) * recording.duration);
      });
    }, recording.root);
  });

  // ------------------------------------------------------------------------------------------------- threshold
  const own = document.getElementById("threshold-own");
  const common = document.getElementById("threshold-common");
  const slider = document.getElementById("threshold");
  const everyClass = document.getElementById("every-class");
  const update = () => {
    const share = own.checked ? null : Number(slider.value) / 100;
    let count = 0;
    recordings.forEach((recording) => {
      recording.tracks.forEach((track) => {
        const lane = recording.root.querySelector(`.lane[data-column="${track.column}"]`);
        track.segments = findSegments(track.scores, recording.times, track.one, share);
        count += track.segments.length;
        const empty = !track.segments.length && !lane.querySelector(".truth") && !everyClass.checked;
        lane.hidden = empty;
        lane.previousElementSibling.hidden = empty;
        drawSegments(recording, track, lane);
      });
      listSegments(recording);
    });
    document.getElementById("threshold-value").textContent = `${slider.value} %`;
    document.getElementById("segment-count").textContent = `${count.toLocaleString("en")} segment${count === 1 ? "" : "s"}`;
  };
  recordings.forEach((recording) => recording.tracks.forEach((track) => drawCurve(recording, track, recording.root.querySelector(`.lane[data-column="${track.column}"]`))));
  slider.addEventListener("input", () => { common.checked = true; update(); });
  [own, common, everyClass].forEach((input) => input.addEventListener("change", update));

  // ------------------------------------------------------------------------------------------------------ save
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const digits = (seconds) => seconds.toFixed(6).replace(/0+$/, "").replace(/\.$/, "");
  document.getElementById("save").addEventListener("click", () => {
    const lines = ["file,start_seconds,end_seconds,class_id,name,score,mean_score,checkpoint"];
    recordings.forEach((recording) => {
      const rows = recording.tracks.flatMap((track) => track.segments.map((segment) => ({ ...segment, track })));
      rows.sort((one, other) => one.start - other.start || one.track.column - other.track.column);
      rows.forEach(({ start, stop: end, score, mean, track }) => {
        const parts = [recording.file, digits(start), digits(end), track.one.id, track.one.name, score.toFixed(6), mean.toFixed(6), data.checkpoint];
        lines.push(parts.map(cell).join(","));
      });
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
    link.download = "segments.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  update();
})();

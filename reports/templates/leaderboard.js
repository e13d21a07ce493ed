"use strict";

// The smallest distance of each image that an attack has a valid result for, and how many are undecided. An unknown
// distance is null; a negative one says that no adversarial was found, or that the draws could not decide.
function worstCase(data, attacks, defense) {
  const smallest = Array(data.samples).fill(null), open = new Set();
  for (const attack of attacks) {
    attack.distances[defense].forEach((distance, i) => {
      if (distance === null) return;
      if (distance === data.undecided) open.add(i);
      smallest[i] = Math.min(smallest[i] ?? Infinity, distance < 0 ? Infinity : distance);
    });
  }
  const undecided = [...open].filter(i => smallest[i] === Infinity).length;
  return { smallest: smallest.filter(distance => distance !== null), undecided };
}

// The probability that an image with k errors of n draws survives some submissions.
function survival(k, n, submissions) {
  let share = 1;
  for (let i = 0; i < submissions; i++) share *= Math.max(0, n - k - i) / (n - i);
  return share;
}

// The mean survival of each sample's likeliest image: that of the attack whose choosing and deciding draws erred most often.
function surviving(data, attacks, defense, submissions) {
  const likeliest = Array(data.samples).fill(null);
  for (const attack of attacks) {
    (attack.likeliest[defense] ?? []).forEach((drawn, i) => {
      if (drawn && (!likeliest[i] || drawn[0] > likeliest[i][0])) likeliest[i] = drawn;
    });
  }
  const known = likeliest.filter(drawn => drawn && drawn[2] >= submissions);
  return known.length ? known.reduce((sum, [, k, n]) => sum + survival(k, n, submissions), 0) / known.length : null;
}

function medianOf(distances) {
  const ordered = Float64Array.from(distances).sort(), n = ordered.length;
  return (ordered[(n - 1) >> 1] + ordered[n >> 1]) / 2;
}

function wilson(share, n) {
  const z2 = 1.959963984540054 ** 2, center = (share + z2 / (2 * n)) / (1 + z2 / n);
  const half = Math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n);
  return [Math.max(0, center - half), Math.min(1, center + half)];
}

// Rounded as in the other tables: to the nearest, from all the digits that the number has.
function printed(value, digits) {
  const format = { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" };
  return new Intl.NumberFormat("en", { ...format, useGrouping: false }).format(value.toFixed(20));
}

function printedDistance(value, digits) {
  if (value === Infinity) return "∞";
  const smallest = 10 ** -digits;
  return value > 0 && value < smallest ? `<${smallest}` : printed(value, digits);
}

function standing(data, attacks, epsilon, defense) {
  const used = attacks.filter(attack => Object.hasOwn(attack.distances, defense.name));
  const row = { name: defense.name, doubts: defense.doubts, gaps: defense.gaps,
    spared: defense.spared, clean: defense.clean, used: used.length, accuracy: null, median: null, known: data.samples,
    undecided: 0, oneDraw: null, bestOf: null };
  if (!used.length) return row;
  const { smallest, undecided } = worstCase(data, used, defense.name), known = smallest.length;
  if (!known) return { ...row, known };
  const accuracy = smallest.filter(distance => !(distance <= epsilon * (1 + data.tolerance))).length / known;
  // Adversarials of bounded attacks lie near their epsilon: alone they say nothing about the smallest or beyond it.
  const median = used.some(attack => attack.epsilon === null) ? medianOf(smallest) : null;
  const found = { ...row, accuracy: used.some(reaches(epsilon)) ? accuracy : null, median, known, undecided };
  const protocol = times => !defense.randomized ? found.accuracy
    : epsilon === data.epsilon ? surviving(data, used, defense.name, times) : null;
  return { ...found, oneDraw: protocol(1), bestOf: protocol(data.resubmissions) };
}

function reaches(epsilon) {
  return attack => attack.epsilon === null || attack.epsilon >= epsilon * (1 - 1e-6);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function leaderboard(place) {
  const data = JSON.parse(place.querySelector("script").textContent);
  const percent = share => `${printed(100 * share, data.percent_decimals)}%`;
  const columns = [
    { key: "name", title: "defense", text: row => row.name, up: true },
    { key: "accuracy", title: "accuracy", text: row => !row.known ? `unknown (${data.samples}/${data.samples})`
        : row.accuracy === null ? "—" : percent(row.accuracy) },
    { key: "interval", title: "95 % interval", text: row => row.accuracy === null ? "—"
        : wilson(row.accuracy, row.known).map(percent).join(" – ") },
    ...(data.resubmissions ? [["oneDraw", "one draw"], ["bestOf", `best of ${data.resubmissions}`]] : [])
      .map(([key, title]) => ({ key, title, text: row => row[key] === null ? "—" : percent(row[key]) })),
    { key: "median", title: `median ${data.norm}`, text: row => row.median === null ? "—"
        : printedDistance(row.median, data.decimals) },
    { key: "clean", title: "clean accuracy", text: row => row.clean === null ? "—" : percent(row.clean) },
    { key: "used", title: "attacks", text: row => [String(row.used), row.spared && "(spared others)",
        row.gaps.length && "(incomplete)", row.undecided && `(${row.undecided} undecided)`,
        row.known < data.samples && `(on ${row.known} of ${data.samples} images)`].filter(Boolean).join(" ") },
  ];
  let sorted = columns[1], up = false;

  const boxes = data.attacks.map(() => element("input", { type: "checkbox", checked: true }));
  const epsilon = element("input", { type: "number", min: 0, step: "any", value: data.epsilon });
  const filter = element("input", { type: "search", placeholder: "part of a name" });
  const check = checked => () => { boxes.forEach(box => { box.checked = checked; }); show(); };
  const choices = element("details", {},
    element("summary", {}, "Attacks that count: ", element("span", { className: "chosen" })),
    element("p", {}, element("button", { type: "button", onclick: check(true) }, "all"), " ",
      element("button", { type: "button", onclick: check(false) }, "none")),
    element("div", { className: "choices" },
      ...data.attacks.map((attack, i) => element("label", {}, boxes[i], " ", attack.label))));
  const headers = columns.map(column => {
    const button = element("button", { type: "button" }, column.title);
    button.onclick = () => {
      up = sorted === column ? !up : Boolean(column.up);
      sorted = column;
      show();
    };
    return element("th", { scope: "col" }, button);
  });
  headers[2].replaceChildren(columns[2].title);
  const body = element("tbody");
  const controls = element("form", { className: "controls", onsubmit: event => event.preventDefault() },
    element("label", {}, "ε ", epsilon), element("label", {}, "Defenses ", filter), choices);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...headers)), body);
  const scroll = element("div", { className: "scroll", role: "region", tabIndex: 0 }, table);
  scroll.setAttribute("aria-label", `${data.norm} leaderboard`);
  const note = element("p", { className: "facts", role: "status" });
  place.append(controls, scroll, note);

  function compare(first, second) {
    const [a, b] = [first[sorted.key], second[sorted.key]];
    if (a === null || b === null) return (a === null) - (b === null);
    return (up ? 1 : -1) * (a < b ? -1 : a > b ? 1 : 0);
  }

  function show() {
    const chosen = data.attacks.filter((_, i) => boxes[i].checked);
    const bound = epsilon.valueAsNumber >= 0 ? epsilon.valueAsNumber : data.epsilon;
    const rows = data.defenses.filter(defense => defense.name.includes(filter.value.trim()))
      .map(defense => standing(data, chosen, bound, defense)).sort(compare);
    const short = chosen.filter(attack => !reaches(bound)(attack)).map(attack => attack.label);
    note.textContent = short.length
      ? `Beyond their own ε these looked for nothing, so accuracies may be too high: ${short.join(", ")}.` : "";
    headers.forEach((header, i) => {
      if (columns[i] === sorted) header.setAttribute("aria-sort", up ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    });
    choices.querySelector(".chosen").textContent = `${chosen.length} of ${data.attacks.length}`;
    body.replaceChildren(...rows.map(row => element("tr", {}, ...columns.map((column, i) => {
      const cell = element(i ? "td" : "th", {}, String(column.text(row)));
      if (!i) cell.scope = "row";
      if (column.key === "used") cell.title = row.gaps.join("; ");
      if (!i && row.doubts.length) {
        cell.append(element("sup", {}, element("a", { href: "#masking", title: row.doubts.join("; ") }, "†")));
      }
      return cell;
    }))));
  }

  for (const input of [...boxes, epsilon, filter]) input.addEventListener("input", show);
  show();
  place.hidden = false;
}

document.querySelectorAll(".leaderboard").forEach(leaderboard);

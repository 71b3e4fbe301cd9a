"use strict";
// Every network's answer, side by side: the row of cards, and the sentence that says who agrees with whom.

/** What a network is called beside the others: "4 bits" where weights and codes have one width, "W4 A8", or its label. */
function widthOf({ bits, actBits, label }) {
  if (bits === null || actBits === null) return label;
  return bits === actBits ? `${bits} bit${bits === 1 ? "" : "s"}` : `W${bits} A${actBits}`;
}

/** The best class, and how far its logit is above the second best. */
function judged(logits) {
  const answer = winnerOf(logits);
  const second = logits.reduce((best, value, i) => (i === answer ? best : Math.max(best, value)), -Infinity);
  return { answer, margin: logits.length > 1 ? logits[answer] - second : 0 };
}

/** The probability of class `index` in per cent, by softmax of the real logits. */
function chance(logits, scale, index) {
  const total = logits.reduce((sum, value) => sum + Math.exp((value - logits[index]) * scale), 0);
  return 100 / total;
}

/** entries: [{bits, actBits, label, answer}] -> their answers: "1 and 2 bits say 3; 3 to 8 say 8." */
function agreement(entries, classNames, areWidths) {
  const groups = new Map();
  entries.forEach((entry, i) => groups.set(entry.answer, [...(groups.get(entry.answer) || []), i]));
  if (entries.length === 1) return `It says ${classNames[entries[0].answer]}.`;
  if (groups.size === 1) return `All ${entries.length}${areWidths ? " widths" : ""} say ${classNames[entries[0].answer]}.`;
  let isFirst = true;
  const parts = [...groups].map(([answer, members]) => {
    const words = areWidths ? ranges(members, (i) => String(entries[i].bits)) : members.map((i) => entries[i].label);
    const alone = members.length === 1, unit = areWidths && isFirst ? ` bit${alone && words[0] === "1" ? "" : "s"}` : "";
    isFirst = false;
    return `${listed(words)}${unit} say${alone && !unit.endsWith("s") ? "s" : ""} ${classNames[answer]}`;
  });
  return `${parts.join("; ")}.`;
}

/** Numbers in a row of three and more become "3 to 8". */
function ranges(members, name) {
  const words = [];
  for (let from = 0, to; from < members.length; from = to + 1) {
    to = from;
    while (members[to + 1] === members[to] + 1) to++;
    if (to - from > 1) words.push(`${name(members[from])} to ${name(members[to])}`);
    else for (let i = from; i <= to; i++) words.push(name(members[i]));
  }
  return words;
}

/** The answer of most; of as many, that of the widest network. */
function mostCommon(answers) {
  const counts = new Map();
  for (const answer of answers) counts.set(answer, (counts.get(answer) || 0) + 1);
  const most = Math.max(...counts.values());
  return answers.findLast((answer) => counts.get(answer) === most);
}

const kilobytes = (bytes) => (bytes < 1000 ? `${bytes} B` : `${(bytes / 1000).toFixed(1)} kB`);
const inThousands = (count) => (count < 1000 ? say(count) : count < 1e6 ? `${Math.round(count / 1000)} k` : `${(count / 1e6).toFixed(1)} M`);

/** The cards. entries: the page's networks, with `network` read; choose(index). Returned: show(logits, shown, method). */
function makeRows(entries, choose) {
  const classNames = entries[0].network.classNames, areShort = classNames.every((name) => name.length < 3);
  const widths = entries.map(widthOf);
  const cards = entries.map((entry, index) => {
    const bars = classNames.map((name) => make("span", {}, make("i"), ...(areShort ? [make("b", {}, name)] : [])));
    const part = (className, text = "") => make("span", { className }, text);
    const areEqual = widths.filter((width) => width === widths[index]).length > 1 && !hasMethods(entries);
    const card = {
      name: part("name", areEqual ? entry.label : widths[index]), tag: part("tag"), digit: part("digit"), bars,
      margin: make("span"), button: make("button", { type: "button", className: "row", title: entry.label }),
    };
    const { totalBytes, macs } = entry.network;
    const chart = make("span", { className: "bars" }, ...bars);
    chart.setAttribute("aria-hidden", "true");
    const facts = make("span", { className: "facts" }, card.margin, make("span", {}, kilobytes(totalBytes)), make("span", {}, `${inThousands(macs)} MACs`));
    card.button.append(card.name, card.tag, card.digit, chart, facts);
    card.button.addEventListener("click", () => choose(index));
    card.item = make("li", {}, card.button);
    return card;
  });
  byId("rows").append(...cards.map((card) => card.item));

  return function show(logits, shown, method) {
    const visible = entries.map((entry, i) => i).filter((i) => !hasMethods(entries) || entries[i].method === method);
    const results = logits && logits.map((one) => judged(one));
    const usual = results && mostCommon(visible.map((i) => results[i].answer));
    cards.forEach((card, i) => {
      card.item.hidden = !visible.includes(i);
      card.button.setAttribute("aria-pressed", String(i === shown));
      const result = results && results[i], differs = result !== null && result.answer !== usual;
      card.button.classList.toggle("differs", differs);
      card.tag.textContent = [differs ? "differs" : "", i === shown && entries.length > 1 ? "shown below" : ""].filter(Boolean).join(", ");
      const answer = result === null ? "\u2013" : classNames[result.answer];
      card.digit.textContent = answer;
      card.digit.classList.toggle("long", answer.length > 2);
      card.margin.textContent = result === null ? "no answer" : `margin ${say(result.margin)}`;
      const [low, high] = result === null ? [0, 0] : [Math.min(...logits[i]), Math.max(...logits[i])];
      card.bars.forEach((bar, c) => {
        const part = high > low ? (logits[i][c] - low) / (high - low) : 0;
        bar.firstChild.style.transform = `scaleY(${0.04 + 0.96 * part})`;
        bar.classList.toggle("top", result !== null && c === result.answer);
      });
    });
    if (results === null) return "Draw something: every stroke is answered at once.";
    const named = visible.map((i) => ({ ...entries[i], answer: results[i].answer }));
    const areWidths = new Set(named.map((entry) => entry.bits)).size === named.length && named.every(({ bits, actBits }) => bits !== null && bits === actBits);
    return agreement(named, classNames, areWidths);
  };
}

const METHODS = { qat: "Trained at these bits (QAT)", ptq: "Quantized afterwards (PTQ)" };
const hasMethods = (entries) => new Set(entries.map((entry) => entry.method)).size > 1;

/** The switch between kinds of networks, where there are several. choose(method). Returned: show(method). */
function makeMethods(entries, choose) {
  const names = [...new Set(entries.map((entry) => entry.method))];
  byId("methods").hidden = names.length < 2;
  const buttons = names.map((name) => make("button", { type: "button" }, METHODS[name] || "Others"));
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(names[i])));
  byId("methods").append(...buttons);
  return (method) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(names[i] === method)));
}

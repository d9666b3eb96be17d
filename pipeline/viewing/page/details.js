// What is known of the picked agent at this moment: motion, likelihoods, the token and what models had in mind.
"use strict";

Spacer.Player.prototype.showDetails = function () {
  const { element } = Spacer;
  const { agent, set, rollout, step } = this.moment;
  if (agent === null) {
    this.details.replaceChildren(element("p", { class: "hint" }, Spacer.HINT), Spacer.legend());
    return;
  }
  const { agents, header } = this.scene;
  const id = agents.id[agent];
  const [length, width] = agents.size[agent];
  const role = agents.sdc[agent] ? "the AV" : agents.evaluated[agent] ? "evaluated" : "not evaluated";
  const parts = [
    element("h4", {}, `${agents.type[agent]} ${id}`),
    element("p", {}, `${role}, ${length.toFixed(1)} × ${width.toFixed(1)} m, ${this.speedText(agent)}`),
  ];
  const { likelihoods = {}, losses = {} } = header.sets[set] || {};
  if (likelihoods[id]) {
    parts.push(Spacer.likelihoodTable(likelihoods[id], losses[id]));
  }
  const decision = this.vocabulary && this.scene.decision(set, rollout, agent, step, this.vocabulary.seconds);
  if (decision) {
    parts.push(...this.decisionTables(agent, decision));
  } else if (set >= 0 && header.sets[set].explained) {
    const known = Object.keys(header.sets[set].explained).map((number) => Number(number) + 1);
    const why = this.scene.simulatedRow.has(agent)
      ? `tokens are shown from now on, for rollout ${known.join(", ")}`
      : "not simulated: not there at the current step";
    parts.push(element("p", { class: "hint" }, why));
  }
  this.details.replaceChildren(...parts);
};

Spacer.HINT =
  "Click an agent, or choose one above. Space plays, ← → step, [ ] change the rollout, + − 0 zoom, " +
  "L shows the log behind, T trails. Click the picture to zoom with the wheel.";

Spacer.legend = function () {
  const { element } = Spacer;
  const entries = [
    ["sdc", "AV"], ["vehicle", "vehicle"], ["pedestrian", "pedestrian"], ["cyclist", "cyclist"],
    ["ghost", "log, where shown behind"], ["mark", "C collision, O off-road, R red light"],
    ["stop", "■ red"], ["caution", "▲ amber"], ["go", "● green"],
  ];
  const items = entries.map(([name, text]) =>
    element("li", {}, element("i", { style: `background:var(--${name})` }), text)
  );
  return element("ul", { class: "legend" }, ...items);
};

Spacer.Player.prototype.speedText = function (agent) {
  const { set, rollout, step } = this.moment;
  const at = Math.floor(step);
  const here = this.scene.pose(set, rollout, agent, at);
  const before = this.scene.pose(set, rollout, agent, at - 1);
  if (!here) {
    return "not there now";
  }
  if (!before || at < 1) {
    return "";
  }
  const speed = Math.hypot(here[0] - before[0], here[1] - before[1]) / this.scene.header.step_seconds;
  return `${speed.toFixed(1)} m/s (${(3.6 * speed).toFixed(0)} km/h)`;
};

Spacer.meter = function (share, kind = "") {
  const { element } = Spacer;
  const fill = element("i", { class: kind, style: `width:${(100 * share).toFixed(1)}%` });
  return element("span", { class: "meter", "aria-hidden": "true" }, fill);
};

Spacer.likelihoodTable = function (likelihoods, losses) {
  const { element } = Spacer;
  const rows = Object.entries(likelihoods).map(([name, value]) =>
    element(
      "tr", {},
      element("th", { scope: "row" }, Spacer.FEATURES[name] || name),
      element("td", {}, Spacer.meter(value)),
      element("td", { class: "number" }, value.toFixed(3)),
      element("td", { class: "number" }, (losses && losses[name] ? losses[name] : 0).toFixed(4))
    )
  );
  const head = ["feature", "", "likelihood", "lost"].map((text) => element("th", { scope: "col" }, text));
  return element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
};

// A token in words: where it leads in its 0.2 s or so.
Spacer.Player.prototype.tokenText = function (agent, token) {
  const [x, y, turn] = this.vocabulary.end[this.scene.agents.kind[agent]][token];
  const speed = Math.hypot(x, y) / this.vocabulary.seconds;
  const degrees = (turn * 180) / Math.PI;
  const way = Math.abs(degrees) < 0.5 ? "" : `, ${degrees > 0 ? "left" : "right"} ${Math.abs(degrees).toFixed(0)}°`;
  return speed < 0.05 && !way ? "stands still" : `${x < 0 ? "back " : ""}${speed.toFixed(1)} m/s${way}`;
};

Spacer.Player.prototype.decisionTables = function (agent, decision) {
  const { element } = Spacer;
  const done = this.tokenText(agent, decision.token);
  const parts = [element("h5", {}, `decision ${decision.number + 1}: token ${decision.token}, ${done}`)];
  for (const { model, top, chosen } of decision.opinions) {
    const rows = top.map(({ token, share }) =>
      element(
        "tr", { class: token === decision.token ? "executed" : "" },
        element("th", { scope: "row" }, `${token}`),
        element("td", {}, this.tokenText(agent, token)),
        element("td", {}, Spacer.meter(share, `of-${model}`)),
        element("td", { class: "number" }, share.toFixed(3))
      )
    );
    const caption = element("caption", {}, `${model}: gave it ${chosen.toFixed(3)}; its likeliest tokens`);
    parts.push(element("table", { "data-model": model }, caption, element("tbody", {}, ...rows)));
  }
  return parts;
};

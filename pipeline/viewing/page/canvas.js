// Draws one moment of a scene on a canvas: the map, lights, agents, trails, the log behind them, and what happened.
"use strict";

Spacer.COLOURS = [
  "canvas", "lane", "white-line", "yellow-line", "edge", "crosswalk", "bump", "driveway", "ink", "vehicle",
  "pedestrian", "cyclist", "sdc", "other", "ghost", "stop", "caution", "go", "mark", "policy", "reference",
];
// By ``Line`` of viewing/drawing.py: colour, width in metres, least width in pixels, dashes in metres.
Spacer.LINES = [
  ["lane", 0.15, 0.6, []], ["white-line", 0.15, 0.8, []], ["yellow-line", 0.15, 0.8, []], ["edge", 0.3, 1.2, []],
  ["crosswalk", 0.2, 0.8, []], ["bump", 0.2, 0.8, []], ["driveway", 0.1, 0.5, []], ["stop", 0.3, 1, []],
  ["white-line", 0.15, 0.8, [3, 3]], ["yellow-line", 0.15, 0.8, [3, 3]],
];
Spacer.EVENTS = [
  { name: "collision", letter: "C" }, { name: "off-road", letter: "O" }, { name: "red light", letter: "R" },
];
// ``LightState`` of data/scene.py.
Spacer.LIGHTS = ["unknown", "stop", "caution", "go", "stop", "caution", "go", "stop", "caution"];

Spacer.Canvas = class {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.view = { x: 0, y: 0, scale: 4 };
  }

  // From the style sheet; known once the canvas is in the page.
  readColours() {
    const style = getComputedStyle(this.canvas);
    this.colour = Object.fromEntries(
      Spacer.COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`).trim() || "#888"])
    );
  }

  show(scene) {
    this.scene = scene;
    this.readColours();
    this.paths = Spacer.LINES.map(() => new Path2D());
    for (const { kind, coordinates } of scene.lines) {
      const path = this.paths[kind];
      if (coordinates.length === 1) {
        const [x, y] = coordinates[0];
        path.rect(x - 0.6, y - 0.6, 1.2, 1.2);
      } else {
        coordinates.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
      }
    }
    this.fit();
  }

  // As many pixels as the screen has for the place the canvas takes.
  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.canvas.getBoundingClientRect();
    const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      Object.assign(this.canvas, { width: wide, height: high });
    }
    this.ratio = ratio;
  }

  fit() {
    this.resize();
    const { x, y, width, height } = this.scene.extent();
    const scale = Math.min(this.canvas.width / width, this.canvas.height / height) / this.ratio;
    this.view = { x, y, scale: Math.min(30, Math.max(0.5, scale)) };
  }

  zoom(factor, at = null) {
    const scale = Math.min(60, Math.max(0.3, this.view.scale * factor));
    if (at) {
      const [x, y] = this.toWorld(at[0], at[1]);
      this.view.x = x - ((x - this.view.x) * this.view.scale) / scale;
      this.view.y = y - ((y - this.view.y) * this.view.scale) / scale;
    }
    this.view.scale = scale;
  }

  pan(right, down) {
    this.view.x -= right / this.view.scale;
    this.view.y += down / this.view.scale;
  }

  // Pixels of the page, from the canvas's upper left corner, to metres and back.
  toWorld(left, top) {
    const { width, height } = this.canvas.getBoundingClientRect();
    return [this.view.x + (left - width / 2) / this.view.scale, this.view.y - (top - height / 2) / this.view.scale];
  }

  toScreen(x, y) {
    const { width, height } = this.canvas.getBoundingClientRect();
    return [width / 2 + (x - this.view.x) * this.view.scale, height / 2 - (y - this.view.y) * this.view.scale];
  }

  draw(moment) {
    this.resize();
    const { context, canvas, view, ratio } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.colour.canvas;
    context.fillRect(0, 0, canvas.width, canvas.height);
    const scale = view.scale * ratio;
    context.setTransform(scale, 0, 0, -scale, canvas.width / 2 - view.x * scale, canvas.height / 2 + view.y * scale);
    this.pixel = 1 / view.scale;
    this.drawMap();
    this.drawLights(moment);
    this.drawTrails(moment);
    if (moment.log && moment.set >= 0) {
      this.drawLog(moment);
    }
    this.drawAgents(moment);
    this.drawTokens(moment);
    this.drawEvents(moment);
  }

  drawMap() {
    const { context } = this;
    context.lineJoin = "round";
    Spacer.LINES.forEach(([colour, width, least, dashes], kind) => {
      context.strokeStyle = this.colour[colour];
      context.lineWidth = Math.max(width, least * this.pixel);
      context.setLineDash(dashes);
      context.stroke(this.paths[kind]);
    });
    context.setLineDash([]);
  }

  // Shapes as well as colours: a square stops, a triangle warns, a circle goes.
  drawLights({ step }) {
    const { context } = this;
    const size = Math.max(0.9, 4 * this.pixel);
    for (const { x, y, state } of this.scene.lights(step)) {
      const kind = Spacer.LIGHTS[state];
      context.fillStyle = kind === "unknown" ? this.colour.ghost : this.colour[kind];
      context.beginPath();
      if (kind === "stop") {
        context.rect(x - size, y - size, 2 * size, 2 * size);
      } else if (kind === "caution") {
        context.moveTo(x - size, y - size);
        context.lineTo(x + size, y - size);
        context.lineTo(x, y + size);
      } else {
        context.arc(x, y, size * (kind === "go" ? 1 : 0.5), 0, 2 * Math.PI);
      }
      context.fill();
    }
  }

  agentColour(agent) {
    const { type, sdc } = this.scene.agents;
    return sdc[agent] ? this.colour.sdc : this.colour[type[agent]] || this.colour.other;
  }

  tracePath(set, rollout, agent, first, last) {
    const { context, scene } = this;
    context.beginPath();
    let open = false;
    for (let step = first; step <= last; step++) {
      const pose = scene.pose(set, rollout, agent, step);
      if (pose) {
        open ? context.lineTo(pose[0], pose[1]) : context.moveTo(pose[0], pose[1]);
      }
      open = pose !== null;
    }
    context.stroke();
  }

  // Of all agents where they go in this rollout; of a picked one where it goes in every rollout.
  drawTrails({ set, rollout, agent, trails, step }) {
    const { context, scene } = this;
    if (trails) {
      context.lineWidth = Math.max(0.2, this.pixel);
      context.globalAlpha = 0.55;
      for (let other = 0; other < scene.count; other++) {
        context.strokeStyle = this.agentColour(other);
        this.tracePath(set, rollout, other, scene.now, scene.lastStep);
      }
    }
    if (agent !== null && set >= 0 && scene.simulatedRow.has(agent)) {
      context.strokeStyle = this.agentColour(agent);
      context.lineWidth = Math.max(0.15, this.pixel);
      context.globalAlpha = 0.3;
      for (let other = 0; other < scene.header.sets[set].rollouts; other++) {
        this.tracePath(set, other, agent, scene.now, scene.lastStep);
      }
    }
    context.globalAlpha = 1;
    if (agent !== null) {
      context.strokeStyle = this.agentColour(agent);
      context.lineWidth = Math.max(0.3, 1.5 * this.pixel);
      this.tracePath(set, rollout, agent, Math.max(0, Math.floor(step) - 20), Math.floor(step));
    }
  }

  traceBox([x, y, heading], [length, width]) {
    const [cos, sin] = [Math.cos(heading) / 2, Math.sin(heading) / 2];
    const { context } = this;
    context.beginPath();
    context.moveTo(x + length * cos - width * sin, y + length * sin + width * cos);
    context.lineTo(x - length * cos - width * sin, y - length * sin + width * cos);
    context.lineTo(x - length * cos + width * sin, y - length * sin - width * cos);
    context.lineTo(x + length * cos + width * sin, y + length * sin - width * cos);
    context.closePath();
  }

  // Small agents stay visible from afar.
  boxSize(agent) {
    const [length, width] = this.scene.agents.size[agent];
    return [Math.max(length, 5 * this.pixel), Math.max(width, 3.5 * this.pixel)];
  }

  drawLog({ step }) {
    const { context, scene } = this;
    context.strokeStyle = this.colour.ghost;
    context.lineWidth = 1.5 * this.pixel;
    for (let agent = 0; agent < scene.count; agent++) {
      const pose = scene.logPose(agent, step);
      if (pose) {
        this.traceBox(pose, this.boxSize(agent));
        context.stroke();
      }
    }
  }

  drawAgents({ set, rollout, step, agent: picked }) {
    const { context, scene } = this;
    for (let agent = 0; agent < scene.count; agent++) {
      const pose = scene.pose(set, rollout, agent, step);
      if (!pose) {
        continue;
      }
      const size = this.boxSize(agent);
      this.traceBox(pose, size);
      context.fillStyle = this.agentColour(agent);
      context.fill();
      // The front is a light bar, so that colour is not all that tells the direction.
      const [cos, sin] = [Math.cos(pose[2]), Math.sin(pose[2])];
      const reach = size[0] / 2 - Math.min(0.8, size[0] / 4);
      context.strokeStyle = this.colour.canvas;
      context.lineWidth = Math.max(0.25, this.pixel);
      context.beginPath();
      context.moveTo(pose[0] + reach * cos - 0.4 * size[1] * sin, pose[1] + reach * sin + 0.4 * size[1] * cos);
      context.lineTo(pose[0] + reach * cos + 0.4 * size[1] * sin, pose[1] + reach * sin - 0.4 * size[1] * cos);
      context.stroke();
      if (agent === picked) {
        this.traceBox(pose, [size[0] + 8 * this.pixel, size[1] + 8 * this.pixel]);
        context.strokeStyle = this.colour.ink;
        context.lineWidth = 2 * this.pixel;
        context.stroke();
      }
    }
  }

  // Where the likeliest tokens of the models lead from the start of the current decision.
  drawTokens({ set, rollout, agent, step, vocabulary }) {
    if (agent === null || !vocabulary) {
      return;
    }
    const decision = this.scene.decision(set, rollout, agent, step, vocabulary.seconds);
    const start = decision && this.scene.pose(set, rollout, agent, decision.first);
    if (!start) {
      return;
    }
    const { context } = this;
    const ends = vocabulary.end[this.scene.agents.kind[agent]];
    const [cos, sin] = [Math.cos(start[2]), Math.sin(start[2])];
    for (const { model, top } of decision.opinions) {
      context.fillStyle = this.colour[model];
      for (const { token, share } of top) {
        const [x, y] = ends[token];
        context.globalAlpha = 0.35 + 0.65 * share;
        context.beginPath();
        const size = (1.5 + 5 * Math.sqrt(share)) * this.pixel;
        context.arc(start[0] + x * cos - y * sin, start[1] + x * sin + y * cos, size, 0, 2 * Math.PI);
        context.fill();
      }
    }
    context.globalAlpha = 1;
  }

  // A ring while something happens, and a letter where it began from then on.
  drawEvents({ set, rollout, step }) {
    const { context, scene } = this;
    const happened = scene.events(set, rollout).filter((event) => step >= scene.now + event[3]);
    context.strokeStyle = this.colour.mark;
    context.fillStyle = this.colour.mark;
    context.lineWidth = 2 * this.pixel;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `bold ${11}px system-ui, sans-serif`;
    for (const [, id, kind, first, last] of happened) {
      const agent = scene.rowOf.get(id);
      const lasts = step < scene.now + last + 1;
      const pose = scene.pose(set, rollout, agent, lasts ? step : scene.now + first);
      if (!pose) {
        continue;
      }
      if (lasts) {
        context.beginPath();
        context.arc(pose[0], pose[1], scene.agents.size[agent][0] / 2 + 6 * this.pixel, 0, 2 * Math.PI);
        context.stroke();
      }
      context.save();
      const [x, y] = this.toScreen(pose[0], pose[1]);
      context.setTransform(this.ratio, 0, 0, this.ratio, x * this.ratio, y * this.ratio);
      context.globalAlpha = lasts ? 1 : 0.6;
      const up = -((scene.agents.size[agent][0] / 2) * this.view.scale + 14);
      context.beginPath();
      context.arc(0, up, 8, 0, 2 * Math.PI);
      context.fill();
      context.fillStyle = this.colour.canvas;
      context.fillText(Spacer.EVENTS[kind].letter, 0, up + 0.5);
      context.restore();
    }
  }

  // The agent at a place of the page, or null.
  pick(left, top, { set, rollout, step }) {
    const [x, y] = this.toWorld(left, top);
    let [best, nearest] = [null, 14 * this.pixel];
    for (let agent = 0; agent < this.scene.count; agent++) {
      const pose = this.scene.pose(set, rollout, agent, step);
      if (!pose) {
        continue;
      }
      const [cos, sin] = [Math.cos(pose[2]), Math.sin(pose[2])];
      const [length, width] = this.scene.agents.size[agent];
      const along = Math.abs((x - pose[0]) * cos + (y - pose[1]) * sin) - length / 2;
      const beside = Math.abs((y - pose[1]) * cos - (x - pose[0]) * sin) - width / 2;
      const distance = Math.hypot(Math.max(0, along), Math.max(0, beside));
      if (distance < nearest) {
        [best, nearest] = [agent, distance];
      }
    }
    return best;
  }
};

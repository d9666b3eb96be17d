// A packed scene as questions a drawing asks: where is an agent, what happened to it, what would models have done.
"use strict";

Spacer.Scene = class {
  constructor({ header, arrays }) {
    Object.assign(this, { header, arrays });
    this.agents = header.agents;
    this.now = header.now;
    this.count = this.agents.id.length;
    this.logSteps = arrays.get("log").shape[2];
    this.simulatedRow = new Map(this.agents.simulated.map((agent, row) => [agent, row]));
    this.rowOf = new Map(this.agents.id.map((id, row) => [id, row]));
    this.lastStep = Math.max(this.logSteps - 1, header.sets.length ? this.now + 80 : 0);
    this.lines = this.cutLines();
  }

  cutLines() {
    const points = this.arrays.get("map.points").data;
    const total = points.length / 2;
    const starts = this.arrays.get("map.starts").data;
    const kinds = this.arrays.get("map.kinds").data;
    return Array.from(kinds, (kind, line) => {
      const coordinates = [];
      for (let i = starts[line]; i < starts[line + 1]; i++) {
        coordinates.push([points[i] / 100, points[total + i] / 100]);
      }
      return { kind, coordinates };
    });
  }

  // Where the log has an agent at a (fractional) step, or null where it has not.
  logPose(agent, step) {
    const lower = Math.min(Math.floor(step), this.logSteps - 1);
    if (step > this.logSteps - 1 || !this.arrays.get("log.valid").data[agent * this.logSteps + lower]) {
      return null;
    }
    const upper = Math.min(lower + 1, this.logSteps - 1);
    const there = this.arrays.get("log.valid").data[agent * this.logSteps + upper];
    return this.between("log", agent * 3 * this.logSteps, this.logSteps, lower, there ? upper : lower, step - lower);
  }

  // Where an agent is in a rollout of a set; before the simulation begins, where the log has it.
  pose(set, rollout, agent, step) {
    if (set < 0 || step <= this.now) {
      return this.logPose(agent, set < 0 ? step : Math.min(step, this.now));
    }
    const row = this.simulatedRow.get(agent);
    if (row === undefined) {
      return null;
    }
    const name = `set${set}`;
    const [, rows, , steps] = this.arrays.get(name).shape;
    const offset = (rollout * rows + row) * 3 * steps;
    const at = Math.min(step - this.now - 1, steps - 1);
    if (at < 0) {
      const start = this.logPose(agent, this.now);
      const end = this.between(name, offset, steps, 0, 0, 0);
      return Spacer.blend(start, end, at + 1);
    }
    const lower = Math.floor(at);
    return this.between(name, offset, steps, lower, Math.min(lower + 1, steps - 1), at - lower);
  }

  between(name, offset, steps, lower, upper, share) {
    const data = this.arrays.get(name).data;
    const at = (row, step) => data[offset + row * steps + step];
    const value = (row, scale) => (at(row, lower) + (at(row, upper) - at(row, lower)) * share) / scale;
    return [value(0, 100), value(1, 100), value(2, 1e4)];
  }

  // State of each signal at a step: an array of {x, y, state}, in the order of the file.
  lights(step) {
    const { shape, data } = this.arrays.get("lights.state");
    const place = this.arrays.get("lights.place").data;
    const at = Math.min(Math.floor(step), shape[1] - 1);
    return Array.from({ length: shape[0] }, (_, i) => ({
      x: place[i] / 100,
      y: place[shape[0] + i] / 100,
      state: data[i * shape[1] + at],
    }));
  }

  // [rollout, agent id, kind, first, last]; steps are counted from the current one.
  events(set, rollout) {
    const all = set < 0 ? this.header.log_events : this.header.sets[set].events || [];
    return all.filter((event) => event[0] === (set < 0 ? 0 : rollout));
  }

  // The decision a step belongs to: number, executed token, and what each model had in mind; or null.
  decision(set, rollout, agent, step, seconds) {
    const models = set >= 0 ? (this.header.sets[set].explained || {})[rollout] : undefined;
    const row = this.simulatedRow.get(agent);
    if (models === undefined || row === undefined || step < this.now) {
      return null;
    }
    const prefix = `set${set}.${rollout}`;
    const token = this.arrays.get(`${prefix}.token`);
    const length = Math.round(seconds / this.header.step_seconds);
    const number = Math.min(Math.floor((step - this.now) / length), token.shape[1] - 1);
    const at = row * token.shape[1] + number;
    const opinions = models.map((model) => {
      const ids = this.arrays.get(`${prefix}.${model}.token`);
      const shares = this.arrays.get(`${prefix}.${model}.share`).data;
      const width = ids.shape[2];
      const top = Array.from({ length: width }, (_, i) => ({
        token: ids.data[at * width + i],
        share: shares[at * width + i] / 65535,
      }));
      return { model, top, chosen: this.arrays.get(`${prefix}.${model}.chosen`).data[at] / 65535 };
    });
    return { number, token: token.data[at], first: this.now + number * length, opinions };
  }

  // Half the side of a square around the origin that holds all that moves, and its centre.
  extent() {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const agent of this.agents.simulated) {
      const pose = this.logPose(agent, Math.min(this.now, this.logSteps - 1));
      if (pose) {
        [left, right] = [Math.min(left, pose[0]), Math.max(right, pose[0])];
        [bottom, top] = [Math.min(bottom, pose[1]), Math.max(top, pose[1])];
      }
    }
    if (left > right) {
      return { x: 0, y: 0, width: 100, height: 100 };
    }
    return { x: (left + right) / 2, y: (bottom + top) / 2, width: right - left + 30, height: top - bottom + 30 };
  }
};

Spacer.blend = function (start, end, share) {
  if (!start || !end) {
    return end || start;
  }
  const turn = Math.atan2(Math.sin(end[2] - start[2]), Math.cos(end[2] - start[2]));
  return [
    start[0] + (end[0] - start[0]) * share,
    start[1] + (end[1] - start[1]) * share,
    start[2] + turn * share,
  ];
};

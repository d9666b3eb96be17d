// A scene that plays: controls, keyboard, and what is known of a picked agent.
"use strict";

Spacer.FEATURES = {
  linear_speed: "speed", linear_acceleration: "acceleration", angular_speed: "turning",
  angular_acceleration: "turning acceleration", distance_to_nearest_object: "distance to others",
  collision_indication: "collision", time_to_collision: "time to collision",
  distance_to_road_edge: "distance to road edge", offroad_indication: "off-road",
  traffic_light_violation: "red light",
};

Spacer.Player = class {
  // `root` is filled; `scene` is a Spacer.Scene; `vocabulary` says where tokens lead, or is null.
  constructor(root, scene, vocabulary = null) {
    this.root = root;
    this.vocabulary = vocabulary;
    this.moment = {
      set: -1, rollout: 0, step: 0, agent: null, log: false, trails: false, vocabulary,
    };
    this.playing = false;
    this.speed = 1;
    root.player = this;
    root.classList.add("player");
    this.build();
    this.show(scene);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    document.addEventListener("spacer-theme", () => {
      this.board.readColours();
      this.draw();
    });
  }

  build() {
    const { element } = Spacer;
    const choice = (label, name) => {
      const select = element("select", { "data-control": name });
      return [element("label", {}, element("span", {}, label), select), select];
    };
    const flag = (label, name) => {
      const box = element("input", { type: "checkbox", "data-control": name });
      return [element("label", { class: "flag" }, box, element("span", {}, label)), box];
    };
    const [setLabel, set] = choice("Agents", "set");
    const [rolloutLabel, rollout] = choice("Rollout", "rollout");
    const [agentLabel, agent] = choice("Picked", "agent");
    const [speedLabel, speed] = choice("Speed", "speed");
    for (const value of [0.25, 0.5, 1, 2, 4]) {
      speed.append(element("option", { value, selected: value === 1 }, `${value}×`));
    }
    const [logLabel, log] = flag("log behind", "log");
    const [trailLabel, trails] = flag("trails", "trails");
    this.controls = { set, rollout, agent, speed, log, trails };
    const button = (text, name, title) =>
      element("button", { type: "button", "data-control": name, title, "aria-label": title }, text);
    this.playButton = button("▶", "play", "play or pause (space)");
    const [closer, wider, whole] = [
      button("+", "closer", "zoom in (+)"), button("−", "wider", "zoom out (−)"), button("⤢", "fit", "all (0)"),
    ];
    this.canvas = element("canvas", { tabindex: 0, role: "img" });
    this.board = new Spacer.Canvas(this.canvas);
    this.slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "time", "data-control": "time" });
    this.clock = element("output", { class: "clock" });
    this.strip = element("div", { class: "strip", "aria-hidden": "true" });
    this.details = element("aside", { class: "details", "aria-live": "polite" });
    this.message = element("p", { class: "scene-values" });
    this.root.replaceChildren(
      element("div", { class: "bar" }, setLabel, rolloutLabel, agentLabel, speedLabel, logLabel, trailLabel),
      element(
        "div", { class: "stage" },
        element(
          "div", { class: "picture" },
          element("div", { class: "board" }, this.canvas, element("div", { class: "zoom" }, closer, wider, whole)),
          element(
            "div", { class: "timeline" }, this.playButton,
            element("div", { class: "track" }, this.slider, this.strip), this.clock
          ),
          this.message
        ),
        this.details
      )
    );
    set.addEventListener("change", () => this.chooseSet(Number(set.value)));
    rollout.addEventListener("change", () => this.chooseRollout(Number(rollout.value)));
    agent.addEventListener("change", () => this.pick(agent.value === "" ? null : Number(agent.value)));
    speed.addEventListener("change", () => (this.speed = Number(speed.value)));
    log.addEventListener("change", () => this.change({ log: log.checked }));
    trails.addEventListener("change", () => this.change({ trails: trails.checked }));
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.playButton.addEventListener("click", () => this.toggle());
    closer.addEventListener("click", () => this.zoom(1.3));
    wider.addEventListener("click", () => this.zoom(1 / 1.3));
    whole.addEventListener("click", () => this.fit());
    this.listenToPointer();
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  listenToPointer() {
    const pointers = new Map();
    let moved = 0;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      moved = 0;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) {
        return;
      }
      const now = place(event);
      const apart = pointers.size === 2 ? spread() : 0;
      pointers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      this.board.pan((now[0] - before[0]) / pointers.size, (now[1] - before[1]) / pointers.size);
      if (apart) {
        this.board.zoom(spread() / apart, now);
      }
      this.draw();
    });
    const release = (event) => {
      if (pointers.delete(event.pointerId) && event.type === "pointerup" && moved < 5) {
        const [left, top] = place(event);
        this.pick(this.board.pick(left, top, this.moment));
      }
    };
    this.canvas.addEventListener("pointerup", release);
    this.canvas.addEventListener("pointercancel", release);
    // A page must go on scrolling under the wheel until somebody has chosen the picture.
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (document.activeElement === this.canvas || event.ctrlKey) {
          event.preventDefault();
          this.board.zoom(Math.exp(-event.deltaY / 400), place(event));
          this.draw();
        }
      },
      { passive: false }
    );
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    const editing = ["SELECT", "INPUT", "BUTTON"].includes(event.target.tagName);
    const { rollouts = 1 } = this.scene.header.sets[this.moment.set] || {};
    const turn = (by) => this.chooseRollout((this.moment.rollout + by + rollouts) % rollouts);
    const actions = {
      " ": () => this.toggle(),
      ArrowLeft: () => this.seek(Math.ceil(this.moment.step) - 1),
      ArrowRight: () => this.seek(Math.floor(this.moment.step) + 1),
      Home: () => this.seek(0),
      End: () => this.seek(this.scene.lastStep),
    };
    const letters = {
      "[": () => turn(-1), "]": () => turn(1), "+": () => this.zoom(1.3), "=": () => this.zoom(1.3),
      "-": () => this.zoom(1 / 1.3), 0: () => this.fit(), l: () => this.change({ log: !this.moment.log }),
      t: () => this.change({ trails: !this.moment.trails }), Escape: () => this.pick(null),
    };
    const action = letters[event.key] || (editing ? undefined : actions[event.key]);
    if (action && !(editing && event.target.tagName === "SELECT")) {
      event.preventDefault();
      action();
    }
  }

  // Another scene in the same place; the first set of rollouts is chosen, or the log.
  show(scene) {
    this.pause();
    this.scene = scene;
    this.slider.max = scene.lastStep;
    const { element } = Spacer;
    this.controls.set.replaceChildren(
      element("option", { value: -1 }, "log"),
      ...scene.header.sets.map((set, i) => element("option", { value: i }, set.name.replaceAll("_", " ")))
    );
    this.canvas.setAttribute("aria-label", `map of scenario ${scene.header.scenario_id} with its agents from above`);
    this.moment = { ...this.moment, agent: null, step: Math.min(scene.now, scene.lastStep) };
    this.board.show(scene);
    this.chooseSet(scene.header.sets.length ? 0 : -1);
  }

  chooseSet(set) {
    const { element } = Spacer;
    const { rollouts = 0, displacement = [] } = this.scene.header.sets[set] || {};
    this.controls.rollout.replaceChildren(
      ...Array.from({ length: rollouts }, (_, i) => {
        const from = displacement[i] == null ? "" : ` (${displacement[i].toFixed(1)} m off)`;
        return element("option", { value: i }, `${i + 1} of ${rollouts}${from}`);
      })
    );
    this.controls.rollout.disabled = !rollouts;
    this.change({ set, rollout: 0 });
    this.listAgents();
    this.showValues();
  }

  // What cost most comes first.
  listAgents() {
    const { element } = Spacer;
    const { agents, header } = this.scene;
    const losses = (header.sets[this.moment.set] || {}).losses || {};
    const lost = (row) => Object.values(losses[agents.id[row]] || {}).reduce((sum, value) => sum + value, 0);
    const rows = Array.from(agents.id.keys()).sort((a, b) => lost(b) - lost(a) || agents.id[a] - agents.id[b]);
    const named = rows.map((row) => {
      const kind = agents.sdc[row] ? "AV" : agents.type[row];
      const loss = lost(row) ? `, lost ${lost(row).toFixed(4)}` : "";
      return element("option", { value: row }, `${agents.id[row]} ${kind}${loss}`);
    });
    this.controls.agent.replaceChildren(element("option", { value: "" }, "none"), ...named);
    this.controls.agent.value = this.moment.agent === null ? "" : this.moment.agent;
  }

  showValues() {
    const { values } = this.scene.header.sets[this.moment.set] || {};
    const text = [];
    if (values) {
      text.push(`realism ${values.metametric.toFixed(4)}`);
      text.push(`minADE ${values.min_average_displacement_error.toFixed(2)} m`);
      text.push(`collision ${(100 * values.simulated_collision_rate).toFixed(1)} %`);
      text.push(`off-road ${(100 * values.simulated_offroad_rate).toFixed(1)} %`);
      text.push(`red light ${(100 * values.simulated_traffic_light_violation_rate).toFixed(1)} %`);
    }
    this.message.textContent = text.join(" · ");
  }

  chooseRollout(rollout) {
    this.change({ rollout });
  }

  pick(agent) {
    this.change({ agent });
  }

  change(values) {
    Object.assign(this.moment, values);
    const { set, rollout, agent, log, trails } = this.moment;
    this.controls.set.value = set;
    this.controls.rollout.value = rollout;
    this.controls.agent.value = agent === null ? "" : agent;
    this.controls.log.checked = log;
    this.controls.trails.checked = trails;
    this.drawStrip();
    this.showDetails();
    this.draw();
  }

  drawStrip() {
    const { element } = Spacer;
    const { set, rollout } = this.moment;
    const marks = this.scene.events(set, rollout).map(([, id, kind, first, last]) => {
      const { name } = Spacer.EVENTS[kind];
      const left = (100 * (this.scene.now + first)) / this.scene.lastStep;
      const width = (100 * (last - first + 1)) / this.scene.lastStep;
      const style = `left:${left}%;width:${width}%;top:${4 * kind}px`;
      return element("i", { class: `event-${kind}`, style, title: `object ${id}: ${name}` });
    });
    this.strip.replaceChildren(...marks);
  }

  seek(step) {
    this.moment.step = Math.min(this.scene.lastStep, Math.max(0, step));
    this.showDetails();
    this.draw();
  }

  zoom(factor) {
    this.board.zoom(factor);
    this.draw();
  }

  fit() {
    this.board.fit();
    this.draw();
  }

  toggle() {
    this.playing ? this.pause() : this.play();
  }

  play() {
    if (this.moment.step >= this.scene.lastStep) {
      this.moment.step = 0;
    }
    this.playing = true;
    this.playButton.textContent = "❚❚";
    let before = null;
    let told = -1;
    const frame = (now) => {
      if (!this.playing) {
        return;
      }
      const passed = before === null ? 0 : (now - before) / 1000;
      before = now;
      const step = this.moment.step + (passed * this.speed) / this.scene.header.step_seconds;
      this.moment.step = Math.min(this.scene.lastStep, step);
      if (Math.floor(step) !== told) {
        told = Math.floor(step);
        this.showDetails();
      }
      this.draw();
      step >= this.scene.lastStep ? this.pause() : requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  pause() {
    this.playing = false;
    this.playButton.textContent = "▶";
  }

  draw() {
    this.board.draw(this.moment);
    const { step } = this.moment;
    const seconds = (step - this.scene.now) * this.scene.header.step_seconds;
    this.slider.value = step;
    this.clock.textContent = `${seconds < 0 ? "−" : "+"}${Math.abs(seconds).toFixed(1)} s`;
    Object.assign(this.root.dataset, {
      step: step.toFixed(2), set: this.moment.set, rollout: this.moment.rollout,
      agent: this.moment.agent === null ? "" : this.scene.agents.id[this.moment.agent],
    });
  }
};

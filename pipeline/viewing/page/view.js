// The viewer's list of scenarios, and the one that is shown. The address names it: #ID.
"use strict";

Spacer.Viewer = class {
  constructor() {
    const { element } = Spacer;
    this.get = (id) => document.getElementById(id);
    this.element = element;
    this.root = this.get("player");
    this.shown = 0;
    this.asked = 0;
    this.current = null;
    this.vocabulary = null;
  }

  async start() {
    Spacer.theme.start(this.get("theme"));
    this.get("filter").addEventListener("input", () => this.list());
    this.get("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      const first = this.get("rows").querySelector("a");
      if (first) {
        location.hash = first.hash;
      }
    });
    this.get("more").addEventListener("click", () => this.list(true));
    window.addEventListener("hashchange", () => this.open());
    document.addEventListener("keydown", (event) => this.key(event));
    this.vocabulary = await (await fetch("/api/vocabulary")).json();
    await this.list();
    const first = this.get("rows").querySelector("a");
    if (location.hash.length > 1) {
      this.open();
    } else if (first) {
      location.hash = first.hash;
    }
  }

  // N and P go to the next and the scenario before.
  key(event) {
    const by = { n: 1, p: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") {
      return;
    }
    const links = Array.from(this.get("rows").querySelectorAll("a"));
    const at = links.findIndex((link) => link.dataset.id === this.current);
    const next = links[at + by];
    if (next) {
      location.hash = next.hash;
      next.scrollIntoView({ block: "nearest" });
    }
  }

  question(first) {
    const value = (id) => this.get(id).value;
    const kinds = Array.from(document.querySelectorAll("input[name=kind]:checked"), (box) => box.value);
    return new URLSearchParams({
      text: value("text"), least_agents: value("least_agents"), kinds: kinds.join(","), lights: value("lights"),
      rollouts: this.get("rollouts").checked ? "yes" : "", least_score: value("least_score"),
      most_score: value("most_score"), sort: value("sort"), first,
    });
  }

  async list(more = false) {
    const mine = ++this.asked;
    clearTimeout(this.timer);
    const first = more ? this.shown : 0;
    const answer = await fetch(`/api/scenes?${this.question(first)}`);
    const page = await answer.json();
    if (mine !== this.asked) {
      return;
    }
    if (!answer.ok) {
      this.get("status").textContent = page.error;
      return;
    }
    const rows = page.rows.map((row) => this.row(row));
    more ? this.get("rows").append(...rows) : this.get("rows").replaceChildren(...rows);
    this.shown = first + rows.length;
    this.get("more").hidden = this.shown >= page.matching;
    const looking = page.complete ? "" : ", still looking";
    this.get("status").textContent = `${page.matching} of ${page.found} scenarios${looking}`;
    this.tellDefects(page.defects);
    this.mark();
    if (!page.complete) {
      // Once somebody has gone down the list it stays as it is.
      this.timer = setTimeout(() => this.shown <= 100 && this.list(), 1000);
    }
  }

  row({ id, agents, pedestrians, cyclists, lights, rollouts, score, future }) {
    const { element } = this;
    const facts = [`${agents} agents`];
    for (const [count, name] of [[pedestrians, "pedestrians"], [cyclists, "cyclists"], [lights, "lights"]]) {
      if (count) {
        facts.push(`${count} ${name}`);
      }
    }
    if (!future) {
      facts.push("no future");
    }
    if (rollouts.length) {
      facts.push(rollouts.join(", "));
    }
    const realism = score === null ? "" : ` ${score.toFixed(3)}`;
    const link = element(
      "a", { href: `#${encodeURIComponent(id)}`, "data-id": id },
      element("b", {}, id), realism, element("small", {}, facts.join(", "))
    );
    return element("li", {}, link);
  }

  tellDefects(defects) {
    const box = this.get("defects");
    box.hidden = !defects.length;
    box.querySelector("summary").textContent = `${defects.length} things could not be read`;
    box.querySelector("ul").replaceChildren(...defects.map((text) => this.element("li", {}, text)));
  }

  mark() {
    for (const link of this.get("rows").querySelectorAll("a")) {
      link.setAttribute("aria-current", link.dataset.id === this.current);
    }
  }

  fail(text) {
    this.get("error").hidden = !text;
    this.get("error").textContent = text;
  }

  async open() {
    let id;
    try {
      id = decodeURIComponent(location.hash.slice(1));
    } catch {
      this.fail("the address holds no scenario id");
      return;
    }
    this.current = id;
    this.mark();
    this.get("title").textContent = `${id} …`;
    try {
      const answer = await fetch(`/api/scene/${encodeURIComponent(id)}`);
      if (!answer.ok) {
        throw new Error((await answer.json()).error);
      }
      const scene = new Spacer.Scene(await Spacer.unpack(await answer.arrayBuffer()));
      if (id !== this.current) {
        return;
      }
      this.root.player ? this.root.player.show(scene) : new Spacer.Player(this.root, scene, this.vocabulary);
      this.root.dataset.scenario = id;
      this.get("title").textContent = id;
      this.fail((scene.header.problems || []).join("; "));
    } catch (error) {
      this.get("title").textContent = id;
      this.fail(error.message === "Failed to fetch" ? "the viewer was stopped" : error.message);
    }
  }
};

new Spacer.Viewer().start();

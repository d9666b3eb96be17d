// A report's charts, and the scene that is shown.
"use strict";

Spacer.readJson = (id) => JSON.parse(document.getElementById(id).textContent);

Spacer.drawCharts = async function () {
  const charts = Spacer.readJson("charts");
  for (const place of document.querySelectorAll(".chart")) {
    const spec = charts[Number(place.dataset.chart)];
    await vegaEmbed(place, spec, { renderer: "svg", actions: false, tooltip: { disableDefaultStyle: true } });
  }
  document.documentElement.dataset.charts = "drawn";
};

// Scenes are unpacked when they are chosen: a page of many opens at once.
Spacer.startScenes = function () {
  const contents = Array.from(document.querySelectorAll("script.scene"));
  const choice = document.getElementById("scene");
  if (!choice) {
    return;
  }
  const root = document.getElementById("player");
  const vocabulary = Spacer.readJson("vocabulary");
  let asked = 0;
  const show = async (number) => {
    const mine = ++asked;
    const content = await Spacer.unpack(Spacer.fromBase64(contents[number].textContent.trim()));
    if (mine !== asked) {
      return;
    }
    const scene = new Spacer.Scene(content);
    root.player ? root.player.show(scene) : new Spacer.Player(root, scene, vocabulary);
    document.getElementById("reason").textContent = contents[number].dataset.reason;
    choice.value = number;
    root.dataset.scene = number;
  };
  const turn = (by) => show((Number(choice.value) + by + contents.length) % contents.length);
  choice.addEventListener("change", () => show(Number(choice.value)));
  document.getElementById("before").addEventListener("click", () => turn(-1));
  document.getElementById("next").addEventListener("click", () => turn(1));
  return show(0);
};

Spacer.theme.start(document.getElementById("theme"));
Spacer.startScenes();
Spacer.drawCharts();

(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("script");
  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const now = root.dataset.theme || system;
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  const lines = (name) =>
    name === "all"
      ? [...document.querySelectorAll(".advice .paste pre")].map((pre) => pre.textContent).join("\n")
      : document.getElementById(name).textContent;
  const copied = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch (error) {
      // Some browsers give a file no clipboard: the older way.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  };
  for (const button of document.querySelectorAll("[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      button.textContent = (await copied(lines(button.dataset.copy))) ? "Copied" : "Not copied";
      setTimeout(() => (button.textContent = label), 1500);
    });
  }
})();

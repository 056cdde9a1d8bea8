for (const box of document.querySelectorAll(".search")) {
  const section = box.closest("section");
  const articles = [...section.querySelectorAll("article")];
  const texts = articles.map((article) => article.textContent.toLowerCase());
  const fold = section.querySelector("details:has(article)");
  const input = box.querySelector("input"), output = box.querySelector("output");
  box.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    articles.forEach((article, i) => {
      article.hidden = !words.every((word) => texts[i].includes(word));
      found += !article.hidden;
    });
    if (fold && words.length) fold.open = true;
    output.textContent = words.length ? `${found} of ${articles.length}` : "";
  });
}

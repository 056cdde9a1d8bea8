"""The page's one script, which searches articles, and the policy that lets no other run."""

import base64
import hashlib

SCRIPT = """
for (const box of document.querySelectorAll(".search")) {
  const section = box.closest("section");
  const articles = [...section.querySelectorAll("article")];
  const texts = articles.map((article) => article.textContent.toLowerCase());
  const fold = section.querySelector("details:has(article)");
  const input = box.querySelector("input"), output = box.querySelector("output");
  box.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let found = 0;
    articles.forEach((article, i) => {
      article.hidden = !words.every((word) => texts[i].includes(word));
      found += !article.hidden;
    });
    if (fold && words.length) fold.open = true;
    output.textContent = words.length ? `${found} of ${articles.length}` : "";
  });
}
"""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()

# Should any markup slip in unescaped, browsers still run nothing of it and fetch nothing.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_DIGEST}'; style-src 'unsafe-inline'; img-src data:"
)

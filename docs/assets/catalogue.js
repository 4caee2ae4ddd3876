/* The catalogue of papers: cards are hidden that do not match the text, the status and the category.
   Without this script all cards are shown and the form is not. */
addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.catalogue-filter")
  if (!form) return
  const cards = [...document.querySelectorAll(".paper-card")]
  const count = form.querySelector("output")
  const fields = ["text", "status", "category"]

  const matches = (card, words, status, category) =>
    (!status || card.dataset.status === status) &&
    (!category || card.dataset.category.split(" ").includes(category)) &&
    words.every(word => card.dataset.text.includes(word))

  const filter = () => {
    const [text, status, category] = fields.map(name => form.elements[name].value)
    const words = text.toLowerCase().split(/\s+/).filter(Boolean)
    let shown = 0
    for (const card of cards) {
      card.hidden = !matches(card, words, status, category)
      shown += !card.hidden
    }
    count.value = shown === cards.length ? `${shown} papers` : `${shown} of ${cards.length} papers`
  }

  // A link may ask for a choice: papers/index.html?status=works
  const asked = new URLSearchParams(location.search)
  for (const name of fields) {
    if (asked.has(name)) form.elements[name].value = asked.get(name)
    if (!form.elements[name].value) form.elements[name].value = ""
  }
  form.addEventListener("input", filter)
  form.addEventListener("reset", () => setTimeout(filter))
  form.addEventListener("submit", event => event.preventDefault())
  form.hidden = false
  filter()
})

// Hands chosen tasks to Label Studio's tab “NEAT: selection”, and says what has become of them.

// tasks: numbers. selection: the route. labelStudio: the project's Data Manager, "" = not known. place: says it.
export async function choose(tasks, { selection, labelStudio }, place) {
  place.textContent = "Making the tab …";
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(selection, { method: "POST", headers, body: JSON.stringify({ tasks }) });
    const result = await answer.json();
    if (!answer.ok) throw new Error(result.error);
    const left = result.left_out ? ` The ${result.left_out} that come last in the order are left out.` : "";
    place.textContent = `${result.tasks} in the tab “NEAT: selection”.${left} `;
    if (!labelStudio) return;
    const link = document.createElement("a");
    link.href = result.tab === null ? labelStudio : `${labelStudio}?tab=${result.tab}`;
    link.textContent = result.tab === null ? "It is made in a moment: open Label Studio" : "Open it in Label Studio";
    place.append(link);
  } catch (error) {
    place.textContent = error.message || "The backend does not answer.";
  }
}

// See claims.py: try every claim on what is given, and tell each as a line. Words behind the program's directory choose.
export async function tellAll(claims, ...given) {
  const wanted = process.argv.slice(3)
  let wrong = 0
  for (const [name, claim] of Object.entries(claims)) {
    if (wanted.length && !wanted.some((word) => name.includes(word))) continue
    const began = Date.now()
    let error = null
    try {
      await claim(...given)
    } catch (raised) {
      error = String(raised?.stack ?? raised)
      wrong += 1
    }
    console.log(JSON.stringify({ claim: name, seconds: (Date.now() - began) / 1000, error }))
  }
  return wrong
}

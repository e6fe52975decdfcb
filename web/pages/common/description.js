// What this server can do, from its own description. The pages also run beside older versions.

/** @type {Promise<any> | undefined} */
let reading;

/** The OpenAPI description, read once. @returns {Promise<any>} */
export function description() {
  reading ??= fetch("/openapi.json").then((response) => {
    if (!response.ok) throw new Error(`/openapi.json: ${response.status}`);
    return response.json();
  });
  // A failure is not kept.
  reading.catch(() => (reading = undefined));
  return reading;
}

/** @param {string} path */
export async function hasRoute(path) {
  return path in (await description()).paths;
}

export { createClient, orThrow } from "./client.js";
export { RushgateProblem, RushgateUnreachable } from "./problem.js";

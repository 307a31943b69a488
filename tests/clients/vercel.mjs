// What Vercel's AI SDK does with a gateway; as steps.py:
//
//     node vercel.mjs NODE_MODULES URL [real]

import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, url, real] = process.argv.slice(2);
const require = createRequire(`${resolve(folder)}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateObject, generateText, stepCountIs, streamObject, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

globalThis.AI_SDK_LOG_WARNINGS = false;
const SUNNY = "It is sunny.", ASK = "What is the capital of France? Answer in one sentence.";
const TURNS = 10;
const BLOCK = 16; // tokens: the cache has no parts of blocks
const provider = createOpenAICompatible({
  name: "headwater", baseURL: `${url}/v1`, apiKey: "x", includeUsage: true, supportsStructuredOutputs: true,
});
const model = provider("m");
const City = z.object({ city: z.string().max(12) });
const weather = tool({
  description: "The weather of a city.", inputSchema: City, execute: async ({ city }) => `sunny in ${city}`,
});

const steps = {
  async vercel_text() {
    equal((await generateText({ model, prompt: ASK })).text, SUNNY);
    const told = streamText({ model, prompt: ASK, onError: thrown });
    let text = "";
    for await (const piece of told.textStream) text += piece;
    equal(text, SUNNY);
    if (!((await told.usage).inputTokens > 0)) throw new Error("no usage of a stream");
  },

  async vercel_object() {
    equal((await generateObject({ model, prompt: ASK, schema: City })).object, { city: "Bern" });
    const told = streamObject({ model, prompt: ASK, schema: City, onError: thrown });
    for await (const _ of told.partialObjectStream);
    equal(await told.object, { city: "Bern" });
  },

  async vercel_tools() {
    const asked = { model, prompt: ASK, tools: { weather } };
    const { toolCalls } = await generateText({ ...asked, toolChoice: "required" });
    equal({ name: toolCalls[0].toolName, input: toolCalls[0].input }, { name: "weather", input: { city: "Bern" } });
    equal((await generateText({ ...asked, stopWhen: stepCountIs(3) })).text, SUNNY);
    equal(await streamText({ ...asked, stopWhen: stepCountIs(3), onError: thrown }).text, SUNNY);
  },

  // Each prompt is the last one, and more; what was computed for that must not be computed again.
  async vercel_agent() {
    const loop = { model, prompt: ASK, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(TURNS) };
    for (const turns of [(await generateText(loop)).steps, await streamText({ ...loop, onError: thrown }).steps]) {
      if (turns.length !== TURNS) throw new Error(`${turns.length} turns`);
      turns.reduce((before, { usage, toolCalls }) => {
        City.parse(toolCalls[0].input);
        const cached = usage.inputTokenDetails.cacheReadTokens;
        if (before && !(usage.inputTokens > before && cached >= before - BLOCK))
          throw new Error(`${cached} of ${usage.inputTokens} tokens were cached; the last prompt had ${before}`);
        return usage.inputTokens;
      }, 0);
    }
  },
};

if (!real) delete steps.vercel_agent; // the stand-in has no cache

function thrown({ error }) {
  throw error;
}

// Of a real model no more than the shape is known.
function equal(found, expected) {
  const shape = (value) => JSON.stringify(value, (_, each) => (real && typeof each === "string" ? "" : each));
  if (shape(found) !== shape(expected)) throw new Error(`${JSON.stringify(found)}, not ${JSON.stringify(expected)}`);
}

for (const [step, run] of Object.entries(steps)) {
  let wrong = "";
  await run().catch((error) => { wrong = `${error.name}: ${error.message}`; console.error(error); });
  console.log(JSON.stringify({ step, wrong: wrong.slice(0, 2000) }));
}

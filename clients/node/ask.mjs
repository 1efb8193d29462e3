// Asks a BoN server one question from Node. The server describes itself through reflection, so there is neither a
// proto file nor generated code here.
//
//     node ask.mjs "What is 17 + 25?" [n] [host:port]
import { randomUUID } from "node:crypto";
import grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

const SERVICE = "bon.v1.BestOfNService";
const LOADING = { keepCase: true, longs: String, enums: String, defaults: true, arrays: true, oneofs: true };

// What is used of gRPC's reflection protocol (grpc.reflection.v1alpha). A FileDescriptorResponse (field 4) is left as
// bytes: its encoding is that of a FileDescriptorSet, which is what the loader takes.
const REFLECTION = {
  nested: {
    ServerReflection: {
      methods: {
        ServerReflectionInfo: {
          requestType: "Request",
          requestStream: true,
          responseType: "Response",
          responseStream: true,
        },
      },
    },
    Request: { fields: { file_containing_symbol: { type: "string", id: 4 } } },
    Response: { fields: { file_descriptor_set: { type: "bytes", id: 4 } } },
  },
};

/** The service's definition, asked of the server. */
function reflect(target, credentials) {
  const definition = protoLoader.fromJSON(
    { nested: { grpc: { nested: { reflection: { nested: { v1alpha: REFLECTION } } } } } },
    LOADING,
  );
  const { ServerReflection } = grpc.loadPackageDefinition(definition).grpc.reflection.v1alpha;
  const client = new ServerReflection(target, credentials);
  return new Promise((resolve, reject) => {
    const call = client.ServerReflectionInfo({ deadline: Date.now() + 10_000 });
    call.on("data", ({ file_descriptor_set }) => {
      if (file_descriptor_set.length === 0) reject(new Error(`${target} does not serve ${SERVICE}`));
      else resolve(protoLoader.loadFileDescriptorSetFromBuffer(file_descriptor_set, LOADING));
    });
    call.on("error", reject);
    call.on("end", () => client.close());
    call.end({ file_containing_symbol: SERVICE });
  });
}

// UNAVAILABLE is safe to try again: the request id makes a second attempt the same request.
const RETRIES = {
  methodConfig: [
    {
      name: [{ service: SERVICE }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.2s",
        maxBackoff: "5s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

// Control characters, bidirectional controls and line separators: a terminal would obey them.
const OBEYED = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** The text as JSON, fit for a terminal. */
const shown = (text) =>
  JSON.stringify(text).replace(OBEYED, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);

async function main([prompt, n = "4", target = "127.0.0.1:50051"]) {
  if (prompt === undefined) throw new Error('usage: node ask.mjs "PROMPT" [n] [host:port]');
  const credentials = grpc.credentials.createInsecure();
  const { BestOfNService } = grpc.loadPackageDefinition(await reflect(target, credentials)).bon.v1;
  const client = new BestOfNService(target, credentials, { "grpc.service_config": JSON.stringify(RETRIES) });
  const request = {
    request_id: randomUUID(),
    chat: { messages: [{ role: "user", content: prompt }] },
    n: Number(n),
    view: "CANDIDATE_VIEW_ALL",
  };
  const answer = await new Promise((resolve, reject) => {
    client.Generate(request, { deadline: Date.now() + 120_000 }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
  for (const { index, reward, status, text } of answer.candidates) {
    const mark = index === answer.best.index ? "*" : " ";
    console.log(mark, index, status === "CANDIDATE_STATUS_SCORED" ? reward.toFixed(3) : status, shown(text));
  }
  console.log(`${answer.n_scored} of ${answer.n_requested} scored; request ${answer.request_id}`);
  client.close();
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`${grpc.status[error.code] ?? "error"}: ${shown(error.details ?? error.message)}`);
  process.exitCode = 1;
});

// Asks an agent over mutual TLS with nothing but what is generated from the protos, and prints what came back as JSON.
//
//   node client.mjs --endpoint HOST:PORT --cert FILE --key FILE --ca FILE [--request JSON]
//
// It needs `npm ci` and what buf makes of the protos, in gen/; tests/integration/test_node_client.py shows how.
// Without --cert and --key it shows no certificate. --request is a RemediateRequest in its JSON form. It exits 0 if
// the agent answered, whether it granted or refused what was asked, and 1 if no conversation came about.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { fromJsonString, toJson } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { DiagnosticsService, WatchConditionsResponseSchema } from "./gen/nodediag/v1/diagnostics_service_pb.js";
import { NodeReportSchema } from "./gen/nodediag/v1/node_report_pb.js";
import {
  ListActionsResponseSchema,
  RemediateRequestSchema,
  RemediateResponseSchema,
  RemediationService,
} from "./gen/nodediag/v1/remediation_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const DEADLINE_MS = 5000;

const { values: options } = parseArgs({
  options: {
    endpoint: { type: "string" },
    cert: { type: "string" },
    key: { type: "string" },
    ca: { type: "string" },
    request: { type: "string", default: "{}" },
  },
});

const transport = createGrpcTransport({
  baseUrl: `https://${options.endpoint}`,
  defaultTimeoutMs: DEADLINE_MS,
  nodeOptions: {
    ca: readFileSync(options.ca),
    cert: options.cert && readFileSync(options.cert),
    key: options.key && readFileSync(options.key),
  },
});
const diagnostics = createClient(DiagnosticsService, transport);
const remediation = createClient(RemediationService, transport);

/** The first message of a watch; the rest is not waited for. */
async function snapshot() {
  for await (const message of diagnostics.watchConditions({})) {
    return toJson(WatchConditionsResponseSchema, message);
  }
}

/** What an error says to programs: its code, and the google.rpc details that came with it. */
function explained(error) {
  const details = (schema) => error.findDetails(schema).map((detail) => toJson(schema, detail));
  return {
    code: Code[error.code],
    message: error.rawMessage,
    errorInfo: details(ErrorInfoSchema),
    badRequest: details(BadRequestSchema),
    retryInfo: details(RetryInfoSchema),
  };
}

/** What a call returned, or what it was refused with. */
async function outcome(schema, call) {
  try {
    return { answer: toJson(schema, await call) };
  } catch (error) {
    return { error: explained(ConnectError.from(error)) };
  }
}

try {
  const { report } = await diagnostics.getNodeReport({});
  const request = fromJsonString(RemediateRequestSchema, options.request);
  const told = {
    report: toJson(NodeReportSchema, report),
    watch: await snapshot(),
    actions: await outcome(ListActionsResponseSchema, remediation.listActions({})),
    remediate: await outcome(RemediateResponseSchema, remediation.remediate(request)),
  };
  console.log(JSON.stringify(told));
  process.exit(0); // the connection would be kept for a while
} catch (error) {
  console.log(JSON.stringify({ error: explained(ConnectError.from(error)) }));
  process.exit(1);
}

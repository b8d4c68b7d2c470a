// What a project's own tests do: a server on a port of the kernel's choice, and requests to it.
const assert = require("node:assert");
const http = require("node:http");
const { test } = require("node:test");
const request = require("supertest");

const server = http.createServer((_, response) => response.end("reached"));

test("supertest listens by itself", async () => {
  for (let times = 0; times < 20; times++) {
    const response = await request(server).get("/left").expect(200);
    assert.equal(response.text, "reached");
  }
});

test("a server on every address", async () => {
  await new Promise((done) => server.listen(0, done));
  const response = await fetch(`http://localhost:${server.address().port}/left`);
  assert.equal(await response.text(), "reached");
  server.close();
});

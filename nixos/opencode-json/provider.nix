# `provider`: where models come from.
{ lib }:
let
  inherit (lib) types;
  inherit (import ./types.nix { inherit lib; })
    closed
    json
    open
    optional
    required
    stringMap
    strings
    timeout
    ;

  price = {
    input = required types.number "US dollars for a million input tokens.";
    output = required types.number "US dollars for a million output tokens.";
    cache_read = optional types.number "US dollars for a million tokens read from the cache.";
    cache_write = optional types.number "US dollars for a million tokens written to the cache.";
  };

  media = types.listOf (
    types.enum [
      "text"
      "audio"
      "image"
      "video"
      "pdf"
    ]
  );

  model = closed {
    id = optional types.str "The provider's own name for the model; the attribute name by default.";
    name = optional types.str "Name that is shown.";
    family = optional types.str "Family that the model belongs to.";
    release_date = optional types.str "When the model came out, such as `2026-03-01`.";
    attachment = optional types.bool "Whether the model takes files.";
    reasoning = optional types.bool "Whether the model reasons before it answers.";
    temperature = optional types.bool "Whether the model takes a temperature.";
    tool_call = optional types.bool "Whether the model can call tools. An agent is of little use without.";
    interleaved = optional (types.oneOf [
      types.bool
      types.str
      (closed {
        field = required types.str "Field that holds the reasoning, such as `reasoning_content`.";
      })
    ]) "Whether reasoning comes between the parts of an answer, and in which field.";
    cost = optional (closed (
      price
      // {
        context_over_200k = optional (closed price) "Prices beyond 200,000 tokens of context.";
      }
    )) "Prices.";
    limit = optional (closed {
      context = required types.number "Tokens that the context holds.";
      input = optional types.number "Tokens that a request may have.";
      output = required types.number "Tokens that an answer may have.";
    }) "Limits. Without them opencode does not know when to compact.";
    modalities = optional (closed {
      input = optional media "What the model takes.";
      output = optional media "What the model gives.";
    }) "Kinds of media.";
    experimental = optional types.bool "Whether the model is an experiment.";
    status = optional (types.enum [
      "alpha"
      "beta"
      "deprecated"
      "active"
    ]) "How far along the model is.";
    provider = optional (closed {
      npm = optional types.str "The AI SDK's package for this model.";
      api = optional types.str "Base URL for this model.";
    }) "Where this model differs from its provider.";
    options = optional (types.attrsOf json) "Options that go with every request to the model.";
    headers = optional stringMap "HTTP headers that go with every request to the model.";
    variants = optional (types.attrsOf (open {
      disabled = optional types.bool "Whether the variant is taken away.";
    })) "Named sets of options, to be chosen for a request.";
  };
in
closed {
  id = optional types.str "The provider's identifier, when it is not the attribute name.";
  name = optional types.str "Name that is shown.";
  npm = optional types.str "The AI SDK's package that speaks to it, such as `@ai-sdk/openai-compatible`.";
  api = optional types.str "Base URL.";
  env = optional strings "Environment variables that may hold the key.";
  whitelist = optional strings "The only models to offer.";
  blacklist = optional strings "Models not to offer.";
  options = optional (open {
    apiKey = optional types.str "Key. What is written here is in the Nix store, for all to read: write `{file:/run/…}` or `{env:NAME}`.";
    baseURL = optional types.str "Base URL of the API. The instance's policy must allow its address.";
    enterpriseUrl = optional types.str "GitHub Enterprise URL, for Copilot.";
    setCacheKey = optional types.bool "Whether to send a key for the prompt cache.";
    timeout = optional timeout "Milliseconds for a whole request, or false.";
    headerTimeout = optional timeout "Milliseconds until the answer's headers, or false.";
    chunkTimeout = optional timeout "Milliseconds between two parts of a streamed answer, or false.";
  }) "Options for the package that speaks to the provider.";
  models = optional (types.attrsOf model) "Models, by the name that follows the slash in `provider/model`.";
}

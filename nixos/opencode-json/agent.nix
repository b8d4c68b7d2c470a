# `agent`: who works, with which model, prompt and permissions.
{ lib, permission }:
let
  inherit (lib) types;
  inherit (import ./types.nix { inherit lib; }) json open optional;
in
open {
  description = optional types.str "What the agent is for; other agents choose by it.";
  mode = optional (types.enum [
    "subagent"
    "primary"
    "all"
  ]) "Whether it is talked to, called by other agents, or both.";
  model = optional types.str "Model, as `provider/model`.";
  variant = optional types.str "Variant of the model.";
  temperature = optional types.number "Temperature of the model.";
  top_p = optional types.number "Nucleus sampling of the model.";
  prompt = optional types.str "System prompt; `{file:./prompt.md}` reads one from beside opencode.json.";
  permission = optional permission.type "Rules for this agent, after those for all; written in the same ways.";
  steps = optional types.ints.positive "Rounds of model and tools before the agent must answer.";
  disable = optional types.bool "Whether the agent is taken away.";
  hidden = optional types.bool "Whether it is left out where a user chooses among subagents.";
  color = optional (types.either (types.strMatching "#[0-9a-fA-F]{6}") (
    types.enum [
      "primary"
      "secondary"
      "accent"
      "success"
      "warning"
      "error"
      "info"
    ]
  )) "Color that it is shown in.";
  options = optional (types.attrsOf json) "Options that go with every request to the model.";
  primary = optional types.bool "Deprecated: use `mode`. True becomes `mode = \"primary\"`, where no mode is set; opencode itself would send the key to the model.";
  tools = optional (types.attrsOf types.bool) "Deprecated: use `permission`. Tools, and whether the agent has them.";
  maxSteps = optional types.ints.positive "Deprecated: use `steps`.";
}

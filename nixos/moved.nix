# What is set where another module has it: where it is here.
{ config, lib, ... }:
let
  inherit (import ./instances.nix { inherit config lib; }) enabled option;
  assertions =
    name:
    { model, provider, ... }:
    let
      named = lib.defaultTo "…" model;
      whole = if lib.hasInfix "/" named then named else "${lib.defaultTo "provider" provider}/${named}";
    in
    {
      assertion = model == null && provider == null;
      message = "services.opencode.instances.${name}: `model` and `provider` are no options of a server; the model is in opencode.json, with its provider before it. Write ${option name "config.model"} = \"${whole}\", and remove both.";
    };
in
{
  assertions = lib.mapAttrsToList assertions enabled;
}

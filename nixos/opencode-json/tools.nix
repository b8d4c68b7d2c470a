# What opencode starts beside itself: MCP servers, language servers, formatters.
{ lib }:
let
  inherit (lib) types;
  inherit (import ./types.nix { inherit lib; })
    checked
    closed
    json
    optional
    stringMap
    strings
    ;

  # Keys of one kind of server that stand at the other, or not at all.
  mcpProblem =
    server:
    let
      set = name: server.${name} or null != null;
      stray = names: lib.findFirst set null names;
      local = [
        "command"
        "cwd"
        "environment"
      ];
      remote = [
        "url"
        "headers"
        "oauth"
      ];
      foreign = {
        local = stray remote;
        remote = stray local;
      };
    in
    if server.type == null then
      let
        other = stray (local ++ remote ++ [ "timeout" ]);
      in
      if other == null && set "enabled" then
        null
      else
        "set `type` to \"local\" with a `command`, or to \"remote\" with a `url`; only `enabled` may stand alone"
    else if foreign.${server.type} != null then
      "`${foreign.${server.type}}` is not for a ${server.type} server"
    else if server.type == "local" && !set "command" then
      "a local server needs a `command`"
    else if server.type == "remote" && !set "url" then
      "a remote server needs a `url`"
    else
      null;
in
{
  mcp = checked (closed {
    type = optional (types.enum [
      "local"
      "remote"
    ]) "A program that is started, or a URL.";
    enabled = optional types.bool "Whether it is used. Alone it switches a server on or off that is described elsewhere.";
    timeout = optional types.ints.positive "Milliseconds for an answer.";
    command = optional strings "Local: program and arguments. It runs in the instance's unit, under its policy.";
    cwd = optional types.str "Local: directory to run in.";
    environment = optional stringMap "Local: environment variables.";
    url = optional types.str "Remote: where it is. The instance's policy must allow its address.";
    headers = optional stringMap "Remote: HTTP headers.";
    oauth = optional (types.either (types.enum [ false ]) (closed {
      clientId = optional types.str "Client identifier; without it the client registers itself.";
      clientSecret = optional types.str "Client secret; write `{file:/run/…}`, not the secret.";
      scope = optional types.str "Scopes to ask for.";
      callbackPort = optional (types.ints.between 1 65535) "Port of the listener for the answer.";
      redirectUri = optional types.str "Where the answer is sent.";
    })) "Remote: OAuth, or false to do without.";
  }) mcpProblem;

  lsp = checked (closed {
    disabled = optional types.bool "Whether it is not started.";
    command = optional strings "Program and arguments.";
    extensions = optional strings "File name endings that it is for, such as `.nix`. A server that opencode does not know needs them.";
    env = optional stringMap "Environment variables.";
    initialization = optional (types.attrsOf json) "Initialization options of the protocol.";
  }) (
    server:
    if server.disabled == true || server.command != null then
      null
    else
      "a language server needs a `command`, or `disabled = true`"
  );

  formatter = closed {
    disabled = optional types.bool "Whether it is not used.";
    command = optional strings "Program and arguments; `$FILE` is the file.";
    environment = optional stringMap "Environment variables.";
    extensions = optional strings "File name endings that it is for, such as `.nix`.";
  };
}

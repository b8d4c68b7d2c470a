# The keys of opencode.json, as opencode 1.18 has them.
{ lib, permission }:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; })
    checked
    closed
    gone
    json
    logLevel
    optional
    required
    strings
    ;
  agent = import ./agent.nix { inherit lib permission; };
  provider = import ./provider.nix { inherit lib; };
  tools = import ./tools.nix { inherit lib; };

  command = closed {
    template = required types.str "The prompt; `$ARGUMENTS` is what follows the command.";
    description = optional types.str "What it is for.";
    agent = optional types.str "Agent that runs it.";
    model = optional types.str "Model, as `provider/model`.";
    variant = optional types.str "Variant of the model.";
    subtask = optional types.bool "Whether it runs as a subagent of its own.";
  };

  reference = types.either types.str (
    checked
      (closed {
        path = optional types.str "Directory.";
        repository = optional types.str "Git repository to clone.";
        branch = optional types.str "Branch of the repository.";
        description = optional types.str "What is in it.";
        hidden = optional types.bool "Whether it is left out of what a user is offered.";
      })
      (
        reference:
        if (reference.path == null) != (reference.repository == null) then
          null
        else
          "a reference has either a `path` or a `repository`"
      )
  );

  plugin = types.either types.str (
    types.addCheck (types.listOf json) (
      entry: builtins.length entry == 2 && builtins.isString (builtins.head entry)
    )
    // {
      description = "list of a plugin and its options";
    }
  );

  terminal = "the terminal interface has it in a tui.json of its own, where it runs: remove it here";
in
{
  "$schema" = mkOption {
    type = types.str;
    default = "https://opencode.ai/config.json";
    description = "Schema. Without it opencode would write it into the file, which it cannot.";
  };

  # Models.
  model = optional types.str "Model, as `provider/model`.";
  small_model = optional types.str "Model for small tasks such as titles, as `provider/model`.";
  provider = optional (types.attrsOf provider) "Providers of models.";
  enabled_providers = optional strings "The only providers to use.";
  disabled_providers = optional strings "Providers not to use.";

  # Agents and what they may do.
  agent = optional (types.attrsOf agent) "Agents: opencode's own (`build`, `plan`, `general`, `explore`, …), changed, and others.";
  mode = optional (types.attrsOf agent) "Deprecated: use `agent`. Agents that are primary.";
  default_agent = optional types.str "Agent that a session starts with; a primary one.";
  subagent_depth = optional types.ints.unsigned "How deep subagents may call subagents. opencode's default is 1: not at all.";
  command = optional (types.attrsOf command) "Commands: prompts with a name.";
  permission = optional permission.type permission.description;
  tools = optional (types.attrsOf types.bool) "Deprecated: use `permission`. Tools, and whether there are any.";
  instructions = optional strings "Files, patterns and URLs of instructions for every agent.";
  skills = optional (closed {
    paths = optional strings "Directories of skills.";
    urls = optional strings "URLs of skills.";
  }) "Where skills come from, besides the usual directories.";
  references = optional (types.attrsOf reference) "Directories and Git repositories that agents may read, by name.";
  reference = optional (types.attrsOf reference) "Deprecated: use `references`.";

  # What is started beside.
  mcp = optional (types.attrsOf tools.mcp) "MCP servers.";
  lsp = optional (types.either types.bool (types.attrsOf tools.lsp)) "Language servers: true for opencode's own, or more of them. None by default.";
  formatter = optional (types.either types.bool (types.attrsOf tools.formatter)) "Formatters: true for opencode's own, or more of them. None by default.";
  plugin = optional (types.listOf plugin) "Plugins: npm packages or `file://` URLs, each maybe in a list with its options. They run inside the server.";

  # The server.
  server = optional (closed {
    port = optional (types.ints.between 1 65535) "Port to listen on; the command line has the last word.";
    hostname = optional types.str "Address to listen on; the command line has the last word.";
    mdns = optional types.bool "Whether it announces itself in the local network.";
    mdnsDomain = optional types.str "Domain name that it announces.";
    cors = optional strings "Origins, besides its own, that browsers may call from.";
  }) "The server's listener.";
  logLevel = optional logLevel "Level of opencode's own log.";
  shell = optional types.str "Shell that the shell tool runs commands in.";
  username = optional types.str "Name of the user in conversations.";
  share = optional (types.enum [
    "manual"
    "auto"
    "disabled"
  ]) "Whether sessions may be published on opencode's site: on demand, all, or none.";
  autoshare = optional types.bool "Deprecated: use `share`.";
  autoupdate = optional (types.either types.bool (
    types.enum [ "notify" ]
  )) "Whether opencode updates itself. One from the Nix store cannot.";
  snapshot = optional types.bool "Whether changes are recorded so that they can be undone.";
  layout = optional (types.enum [
    "auto"
    "stretch"
  ]) "Deprecated: without effect.";
  theme = gone terminal;
  keybinds = gone terminal;
  tui = gone terminal;

  # What goes to the model.
  attachment = optional (closed {
    image = optional (closed {
      auto_resize = optional types.bool "Whether images that are too large are made smaller.";
      max_width = optional types.ints.positive "Pixels.";
      max_height = optional types.ints.positive "Pixels.";
      max_base64_bytes = optional types.ints.positive "Bytes after encoding.";
    }) "Images.";
  }) "Files that are sent to the model.";
  tool_output = optional (closed {
    max_lines = optional types.ints.positive "Lines of a tool's output that the model sees.";
    max_bytes = optional types.ints.positive "Bytes of a tool's output that the model sees.";
  }) "How much of a tool's output the model sees; the rest is in a file.";
  compaction = optional (closed {
    auto = optional types.bool "Whether a full context is summarized.";
    prune = optional types.bool "Whether old tool output is dropped.";
    tail_turns = optional types.ints.unsigned "Latest turns that are kept word for word.";
    preserve_recent_tokens = optional types.ints.unsigned "Tokens of the latest turns that are kept.";
    reserved = optional types.ints.unsigned "Tokens that are left free for the summary.";
  }) "What is done with a full context.";
  watcher = optional (closed {
    ignore = optional strings "Patterns of files whose changes do not matter.";
  }) "The file watcher.";

  enterprise = optional (closed {
    url = optional types.str "Its URL.";
  }) "opencode's own site, run by an organization.";
  experimental = optional (closed {
    batch_tool = optional types.bool "Whether there is a tool that calls several at once.";
    continue_loop_on_deny = optional types.bool "Whether the agent goes on after a refusal.";
    disable_paste_summary = optional types.bool "Whether pasted text is kept as it is.";
    mcp_timeout = optional types.ints.positive "Milliseconds for a request to an MCP server.";
    openTelemetry = optional types.bool "Whether calls of models are traced.";
    primary_tools = optional strings "Tools that only primary agents have.";
    policies = optional (types.listOf (closed {
      action = required (types.enum [ "provider.use" ]) "What is ruled on.";
      effect = required (types.enum [
        "allow"
        "deny"
      ]) "Whether it may be.";
      resource = required types.str "The provider, or a pattern.";
    })) "Which providers may be used.";
  }) "What may change.";
}

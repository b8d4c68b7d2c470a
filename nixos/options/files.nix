# What a server reads from `$HOME/.config/opencode`.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) absolutePath content;
  inherit (import ../opencode-json { inherit lib; }) configType;

  kept = "What the agent or somebody else has put there under that name is kept, and said so in the instance's journal, by `opencode-<name>-setup`.";
in
{
  options = {
    config = mkOption {
      type = configType;
      default = { };
      example = {
        model = "anthropic/claude-sonnet-4-5";
        permission.webfetch = "deny";
      };
      description = ''
        `opencode.json`, linked from `$HOME/.config/opencode`. ${kept} It is in the store: write `{env:NAME}` or `{file:/path}` for secrets. The
        project's own `opencode.json` is read as well, and takes precedence over this one.
      '';
    };

    configFile = mkOption {
      type = types.nullOr (types.either absolutePath types.path);
      default = null;
      example = "/run/secrets/rendered/opencode.json";
      description = "A ready `opencode.json` instead of {option}`config`. A path in quotes is read where it is; one without is copied to the world-readable store.";
    };

    attended = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether somebody answers what a permission asks, in the web interface or by `opencode attach`. A session that asks waits for the answer for
        ever, so where this is false, evaluation warns of an `ask` in {option}`config`.
      '';
    };

    skills = mkOption {
      type = types.attrsOf content;
      default = { };
      example = lib.literalExpression "{ review = ./skills/review; }";
      description = "Skills, by name: the text or file of a `SKILL.md`, or a directory with one. Linked at `$HOME/.config/opencode/skills/<name>`. ${kept}";
    };

    agents = mkOption {
      type = types.attrsOf content;
      default = { };
      example = {
        reviewer = ''
          ---
          description: Reviews a change
          mode: subagent
          ---
          Read the diff. Say what is wrong with it.
        '';
      };
      description = "Agents, by name: the text or file of `<name>.md`, or a directory of such files. Linked in `$HOME/.config/opencode/agents`. ${kept}";
    };

    commands = mkOption {
      type = types.attrsOf content;
      default = { };
      description = "Commands, by name: the text or file of `<name>.md`, or a directory of such files. Linked in `$HOME/.config/opencode/commands`. ${kept}";
    };
  };
}

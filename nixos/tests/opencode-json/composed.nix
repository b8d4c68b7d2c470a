# Configurations of several parts, and what those have who come from albertov/opencode-nix. Each test: { got, wanted }.
{ lib }:
let
  opencode = import ../../opencode-json { inherit lib; };
  inherit (opencode) mkConfigFromAttrs;
  read = modules: removeAttrs (builtins.fromJSON (mkConfigFromAttrs modules)) [ "$schema" ];
  fails = value: !(builtins.tryEval (builtins.deepSeq value null)).success;

  # What is told of is silent here, and fails there.
  quiet = import ../../opencode-json {
    lib = lib // {
      warn = _: value: value;
    };
  };
  strict = import ../../opencode-json {
    lib = lib // {
      warn = message: _: throw message;
    };
  };
  # Files as their text.
  shown = import ../../opencode-json {
    inherit lib;
    writeText = _: text: text;
  };
  levels = [
    "debug"
    "info"
    "warn"
    "error"
  ];
in
{
  "a list is merged" = {
    got = read [
      {
        model = "p/small";
        instructions = [ "a.md" ];
        agent.build.steps = 3;
      }
      (
        { lib, ... }:
        {
          model = lib.mkForce "p/large";
          instructions = [ "b.md" ];
          agent.build.prompt = "x";
        }
      )
    ];
    wanted = {
      model = "p/large";
      instructions = [
        "b.md"
        "a.md"
      ];
      agent.build = {
        steps = 3;
        prompt = "x";
      };
    };
  };
  "an empty list is an empty configuration" = {
    got = read [ ];
    wanted = { };
  };
  "a module has imports" = {
    got = read {
      imports = [ { model = "p/m"; } ];
      share = "disabled";
    };
    wanted = {
      model = "p/m";
      share = "disabled";
    };
  };
  "keys below `opencode` are the same keys" = {
    got = read [
      { opencode.model = lib.mkDefault "p/small"; }
      { opencode.agent.build.steps = 3; }
      {
        model = "p/large";
        agent.build.prompt = "x";
      }
      { imports = [ { opencode.share = "disabled"; } ]; }
    ];
    wanted = {
      model = "p/large";
      share = "disabled";
      agent.build = {
        steps = 3;
        prompt = "x";
      };
    };
  };
  "and are held to their types" = {
    got = fails (read [ { opencode.share = "never"; } ]);
    wanted = true;
  };
  "log levels in lower case" = {
    got = map (logLevel: (read { inherit logLevel; }).logLevel) levels;
    wanted = map lib.toUpper levels;
  };
  "null is no log level" = {
    got = read { logLevel = null; };
    wanted = { };
  };
  "and neither is anything else" = {
    got = map (logLevel: fails (read { inherit logLevel; })) [
      "Debug"
      "trace"
      1
    ];
    wanted = [
      true
      true
      true
    ];
  };
  "an agent that is `primary` has that mode" = {
    got =
      (read {
        agent = {
          a.primary = true;
          b = {
            primary = true;
            mode = "all";
          };
          c.primary = false;
        };
      }).agent;
    wanted = {
      a.mode = "primary";
      b.mode = "all";
      c = { };
    };
  };
  "what belongs to the terminal is left out" = {
    got = builtins.fromJSON (
      quiet.mkConfigFromAttrs {
        theme = "dark";
        keybinds.session_new = "ctrl+n";
        tui.scroll_speed = 1.5;
      }
    );
    wanted."$schema" = "https://opencode.ai/config.json";
  };
  "and told of" = {
    got = map (key: fails (strict.mkConfigFromAttrs { ${key} = "x"; })) [
      "theme"
      "keybinds"
      "tui"
    ];
    wanted = [
      true
      true
      true
    ];
  };
  "the other names" = {
    got = map (function: function [ { opencode.model = "p/m"; } ]) [
      shown.mkOpenCodeConfig
      shown.mkOpenCodeConfigFromAttrs
    ];
    wanted = map mkConfigFromAttrs [
      { model = "p/m"; }
      { model = "p/m"; }
    ];
  };
}

# What is wrong, as a list of sentences. The messages in refused.nix are compared by `cargo xtask config-test`, since an
# expression cannot see an error's text.
{ lib }:
let
  inherit (lib) concatLists mapAttrsToList optional;
  opencode = import ../../opencode-json { inherit lib; };
  inherit (opencode) mkConfigFromAttrs;
  configs = import ./configs.nix;

  equal =
    what: got: wanted:
    optional (got != wanted) "${what}: got ${got}, wanted ${wanted}";
  fails = value: !(builtins.tryEval (builtins.deepSeq value null)).success;

  golden = mapAttrsToList (
    name: config: equal "golden/${name}.json" (mkConfigFromAttrs config) (builtins.readFile ./golden/${name}.json)
  ) configs;

  refused = mapAttrsToList (
    name: case: optional (!fails (mkConfigFromAttrs case.config)) "refused.nix: ${name} is taken"
  ) (import ./refused.nix);

  # Through modules, as instances are.
  instances =
    (lib.evalModules {
      modules = [
        {
          options.instances = lib.mkOption { type = lib.types.attrsOf opencode.configType; };
          config.instances.a = {
            model = "p/a";
            agent.build.prompt = "a";
            permission = [
              {
                tool = "bash";
                action = "ask";
              }
            ];
          };
          config.instances.b.agent.build.steps = 3;
        }
        {
          instances.a = {
            mcp.x.enabled = true;
            permission = lib.mkAfter [
              {
                tool = "bash";
                pattern = "ls";
                action = "allow";
              }
            ];
          };
        }
      ];
    }).config.instances;
  parsed = lib.mapAttrs (_: config: builtins.fromJSON (opencode.render config)) instances;
  schema."$schema" = "https://opencode.ai/config.json";
  modules =
    equal "instance a" (builtins.toJSON parsed.a) (
      builtins.toJSON (
        schema
        // {
          model = "p/a";
          agent.build.prompt = "a";
          mcp.x.enabled = true;
          permission.bash = {
            "*" = "ask";
            ls = "allow";
          };
        }
      )
    )
    ++ equal "instance b" (builtins.toJSON parsed.b) (
      builtins.toJSON (schema // { agent.build.steps = 3; })
    )
    ++ equal "a rendered value goes through again" (mkConfigFromAttrs instances.a) (opencode.render instances.a);

  # What a newer opencode may know is kept, and told of.
  strict = import ../../opencode-json {
    lib = lib // {
      warn = message: _: throw message;
    };
  };
  unknown =
    config: optional (!fails (strict.mkConfigFromAttrs config)) "no warning for ${builtins.toJSON config}";
  known =
    config: optional (fails (strict.mkConfigFromAttrs config)) "a warning for ${builtins.toJSON config}";
  beyond =
    unknown { modle = "p/m"; }
    ++ unknown { mcp.x = { type = "local"; command = [ "x" ]; enviroment.A = "b"; }; }
    ++ known { provider.p.options.organization = "x"; }
    ++ known { agent.build.effort = "high"; }
    ++ concatLists (mapAttrsToList (_: known) configs);

  # Said, and not just an attribute that is missing.
  older = import ../../opencode-json { lib = lib // { types = removeAttrs lib.types [ "json" ]; }; };
  tooOld = optional (!fails (older.mkConfigFromAttrs { other = 1; })) "a nixpkgs without types.json is taken";

  text = opencode.json.toOrderedJSON;
  serializer =
    equal "order" (text (opencode.json.ordered [ { name = "b"; value = 1; } { name = "a"; value = "\"\n"; } ]))
      "{\n  \"b\": 1,\n  \"a\": \"\\\"\\n\"\n}\n"
    ++ equal "empty" (text { a = { }; b = [ ]; c = null; }) "{\n  \"a\": {},\n  \"b\": []\n}\n"
    ++ equal "without an order it is builtins.toJSON" (builtins.toJSON (builtins.fromJSON (text configs.providers)))
      (builtins.toJSON configs.providers);
in
concatLists (golden ++ refused)
++ modules
++ beyond
++ tooOld
++ serializer
++ concatLists (
  mapAttrsToList (
    name: { got, wanted }: equal name (builtins.toJSON got) (builtins.toJSON wanted)
  ) (import ./overlay.nix { inherit lib; } // import ./composed.nix { inherit lib; })
)

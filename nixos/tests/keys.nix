# Providers whose keys opencode-keys.service has: what is refused, and what instances, policies and nginx are told.
{ lib, host }:
let
  inherit (lib) hasInfix;
  inherit (import ./said.nix { inherit lib host; }) fails isolated;
  is = got: expected: { inherit got expected; };
  inherit (import ../keys/upstream.nix { inherit lib; }) parseHeader parseUpstream;

  with' = settings: { providers.anthropic = { keyFile = "/run/secrets/anthropic"; } // settings; };
  keyed = with' { };
  one = settings: host.one (with' settings);
  provider = name: settings: { providers.${name} = { keyFile = "/run/secrets/x"; } // settings; };
  opencodeJson =
    config: builtins.fromJSON (config.environment.etc."opencode-instances/a".source.entries."opencode.json".text);
  policy = config: (builtins.fromJSON config.environment.etc."opencode-egress/policy.json".source.policy).instances;
  conf = config: config.environment.etc."opencode-keys/nginx.conf".source.text;
  portOf = config: name: lib.head (lib.filter (port: hasInfix "${toString port} ${name};" (conf config)) (map (listen: listen.port) (policy config).keys.listen));

  many =
    count:
    host.config (
      map (
        number:
        host.called "x${toString number}" (
          keyed
          // {
            directory = "/srv/x${toString number}";
            listen.port = 5000 + number;
          }
        )
      ) (lib.range 1 count)
    );
in
{
  "names of its units" = is (map (name: host.failures (host.config [ (host.called name { directory = "/srv/x"; }) ]) != [ ]) [
    "keys"
    "keys-gone"
    "keys-reload"
    "keys2"
  ]) [ true true true false ];
  "its name, in words" = fails (host.config [ (host.called "keys" { directory = "/srv/x"; }) ]) [
    "instances.keys"
    "opencode-keys.service"
    "Call the instance something else"
  ] (host.config [ (host.called "key" { directory = "/srv/x"; }) ]);
  "an unknown provider without a base URL" =
    fails (host.one (provider "anthropics" { })) [ "providers.anthropics.upstream" "anthropic, deepseek" "correct the name" ]
      (host.one (provider "own" { upstream = "https://llm.example.org"; }));
  "a key in the store" =
    fails (one { keyFile = "${builtins.storeDir}/x"; }) [ "providers.anthropic.keyFile" "in the store" "sops-nix" ]
      (one { });
  "a key where an agent writes" =
    fails (one { keyFile = "/srv/a/.key"; }) [ "providers.anthropic.keyFile" "instances.a.directory" "/run/secrets" ]
      (one { keyFile = "/srv/key"; });
  "a path without quotes" = is (host.throws (one { keyFile = ./keys.nix; }).environment.etc."opencode-keys/list".source.text) true;
  "a configuration of one's own file" =
    fails (host.one (keyed // { configFile = "/run/x.json"; })) [ "instances.a.providers" "configFile" ] (host.one keyed);
  "a base URL or a key in the configuration" =
    fails
      (host.one (keyed // { config.provider.anthropic.options.baseURL = "https://llm.example.org"; }))
      [ "config.provider.anthropic.options has baseURL" "Remove it" "providers.anthropic.upstream" ]
      (host.one (keyed // { config.provider.anthropic.options.timeout = 5; }));
  "a key in the environment" =
    fails (host.one (keyed // { environment.ANTHROPIC_API_KEY = "x"; })) [ "instances.a.environment" "ANTHROPIC_API_KEY" "Remove it" ]
      (host.one (keyed // { environment.OPENAI_API_KEY = "x"; }));
  "a key in a variable of the configuration's own" =
    let
      named = settings: host.one (keyed // { config.provider.anthropic.env = [ "LLM_KEY" ]; } // settings);
    in
    fails (named { environment.LLM_KEY = "x"; }) [ "instances.a.environment" "LLM_KEY" "Remove it" ] (named { environment.LLM = "x"; });
  "a network that is denied, with its port in it" =
    let
      denying = cidr: host.one (keyed // isolated { outboundDenyCidrs = [ cidr ]; });
    in
    fails (denying "127.0.0.0/8") [ "networkIsolation.outboundDenyCidrs has 127.0.0.0/8" "would not reach 127.0.0.1" "Remove it" ] (denying "10.0.0.0/8");
  "what leads round its policy" =
    let
      changed =
        settings:
        host.config [
          (host.called "a" (keyed // { directory = "/srv/a"; }))
          { systemd.services.opencode-keys.serviceConfig = settings; }
        ];
    in
    fails (changed { ExecStartPre = lib.mkForce [ ]; })
      [ "systemd.services.opencode-keys.serviceConfig" "ExecStartPre" "lead round" "leave `providers` out" ]
      (changed { MemoryMax = lib.mkForce "1G"; });
  "a port of its own that a server listens on" =
    let
      port = portOf (host.one keyed) "a";
    in
    fails (host.one (keyed // { listen.port = port; })) [ "instances.a.listen" (toString port) "opencode-keys.service" ]
      (host.one (keyed // { listen.port = port + 1; }));
  "a port of an instance's, where one without providers listens" =
    let
      port = portOf (host.two keyed { }) "a";
      listening = port: host.two keyed { listen.extraPorts = [ port ]; };
    in
    fails (listening port) [ "instances.b.listen" (toString port) "opencode-keys.service has the providers of `a`" ] (listening (port + 1));
  "a user of two" =
    let
      shared = keyed // { user = "alice"; };
    in
    fails (host.two shared { user = "alice"; }) [ "instances.a.user" "instances.b.user" "token" ] (host.two keyed { });
  "more than there is room for" = fails (many 17) [ "17 instances" "16" "environmentFile" ] (many 16);
  "names of providers" = is (map (name: host.throws (host.failures (host.one (provider name { upstream = "https://llm.example.org"; })))) [
    "a b"
    "../x"
    "-x"
    "a;b"
    "Own_1-x"
  ]) [ true true true true false ];
  "base URLs" =
    is
      (map (text: parseUpstream text ? value) [
        "https://api.anthropic.com/v1"
        "https://api.deepseek.com"
        "https://llm.example.org:8443/a/b"
        "https://LLM.example.org./v1"
        "http://llm.example.org/v1"
        "https://192.0.2.1/v1"
        "https://*.example.org/v1"
        "https://user@llm.example.org/v1"
        "https://llm.example.org/v1/"
        "https://llm.example.org/v1?key=x"
        "https://llm.example.org/a/../b"
        "https://llm.example.org:0/"
        "https://llm.example.org:70000/v1"
        "https://llm.example.org/v1;x"
        "https://[2001:db8::1]/v1"
        "https://bücher.example/v1"
        "llm.example.org"
        ""
        "https://llm.example.org/${lib.concatStrings (lib.genList (_: "x") 100)}"
      ])
      ([ true true true true ] ++ lib.genList (_: false) 15);
  "the dot that ends a name, which certificates do not have" = is (parseUpstream "https://LLM.example.org./v1").value.host "llm.example.org";
  "a password is not told again" =
    let
      inherit (parseUpstream "https://user:secret@llm.example.org/v1") problem;
    in
    is [ (hasInfix "secret" problem) (hasInfix "write `https://llm.example.org/v1`" problem) ] [ false true ];
  "a base URL without TLS, in words" = is (hasInfix "without TLS" (parseUpstream "http://x.example.org").problem) true;
  "headers" = is (map (text: parseHeader text ? value) [ "x-api-key" "Authorization: Bearer" "a b" "a: b c" "a: b;" "host" "Content-Type: x" ]) [
    true
    true
    false
    false
    false
    false
    false
  ];
  "models" = is (map (models: host.throws (conf (one { inherit models; }))) [
    [ ]
    [ "a b" ]
    [ "a\"b" ]
    [ "a'" ]
    [ "openai/gpt-5.4" ]
    null
  ]) [ true true true true false false ];

  "the configuration has the port and the token, and what was there" =
    let
      config = host.one (
        provider "own" {
          upstream = "https://llm.example.org:8443/v1";
          models = [ "small" ];
        }
        // {
          config.provider.own = {
            npm = "@ai-sdk/openai-compatible";
            options.timeout = 5;
          };
          config.provider.other.name = "Other";
        }
      );
    in
    is (opencodeJson config).provider {
      own = {
        npm = "@ai-sdk/openai-compatible";
        options = {
          timeout = 5;
          apiKey = "{file:/run/opencode/tokens/a}";
          baseURL = "http://127.0.0.1:${toString (portOf config "a")}/own/v1";
        };
        whitelist = [ "small" ];
      };
      other.name = "Other";
    };
  "each of the known has what opencode asks for" =
    let
      inherit (import ../keys/providers.nix) known;
      all = host.one {
        providers = lib.mapAttrs (name: _: { keyFile = "/run/secrets/${name}"; }) known;
      };
    in
    is (lib.attrNames (opencodeJson all).provider) [ "anthropic" "deepseek" "google" "groq" "mistral" "openai" "openrouter" "xai" ];
  "each instance has a port that its policy allows, and no other's" =
    let
      config = host.two (keyed // isolated { }) (keyed // isolated { });
      rule = name: {
        cidr = "127.0.0.1/32";
        protocol = "tcp";
        ports = [ (toString (portOf config name)) ];
      };
      lines = map lib.trim (lib.splitString "\n" config.networking.nftables.tables.opencode-egress.content);
      accepts = name: "ip daddr 127.0.0.1/32 meta l4proto tcp th dport { ${toString (portOf config name)} } accept";
    in
    is
      {
        allow = lib.genAttrs [ "a" "b" ] (name: (policy config).${name}.allow);
        locks = lib.length (lib.filter (line: line == accepts "a" || line == accepts "b") lines);
      }
      {
        allow = {
          a = [ (rule "a") ];
          b = [ (rule "b") ];
        };
        locks = 2;
      };
  "a port stays when another instance comes" = is (portOf (host.two keyed keyed) "b") (
    portOf (host.two { } keyed) "b"
  );
  "ports differ, however many there are" = is (lib.length (lib.unique (map (listen: listen.port) (policy (many 16)).keys.listen))) 16;
  "its policy is the providers' names" =
    is
      (removeAttrs (policy (
        host.one {
          providers = {
            anthropic.keyFile = "/run/secrets/x";
            own = {
              keyFile = "/run/secrets/x";
              upstream = "https://llm.example.org:8443/v1";
            };
          };
        }
      )).keys [ "listen" ])
      {
        units = [ "opencode-keys.service" ];
        mode = "enforce";
        allow = [
          {
            name = "api.anthropic.com";
            ports = [ "443" ];
          }
          {
            name = "llm.example.org";
            ports = [ "8443" ];
            private = true;
          }
        ];
        deny = [ ];
        limits.sockets = 16384;
      };
  "keys are credentials" =
    let
      unit = (host.one keyed).systemd.services.opencode-keys.serviceConfig;
    in
    is
      {
        inherit (unit) LoadCredential SetCredential;
        first = lib.head unit.ExecStartPre;
      }
      {
        LoadCredential = [ "a.anthropic:/run/secrets/anthropic" ];
        SetCredential = [ "a.anthropic:none" ];
        first = "+/etc/opencode-egress/bin/opencode-egress attach --timeout 60 keys";
      };
  "its memory has room for the requests that it reads" =
    let
      memory = settings: (one settings).systemd.services.opencode-keys.serviceConfig.MemoryMax;
    in
    is
      (map memory [
        { }
        { models = [ "x" ]; }
        {
          models = [ "x" ];
          limit = {
            parallel = 2;
            bytes = 1024;
          };
        }
      ])
      [
        "2147483648"
        "4294967296"
        "2147485696"
      ];
  "the paths are looked at when the token is made, and the set-up looks for the key" =
    let
      services = (host.one keyed).systemd.services;
    in
    is
      [
        services.opencode-a-paths.wants
        services.opencode-a-paths.after
        (hasInfix "/run/opencode/tokens/a" services.opencode-a-paths.serviceConfig.ExecStart.text)
        (lib.elem "opencode-a-paths.service" services.opencode-a-setup.requires)
        (hasInfix "look ANTHROPIC_API_KEY anthropic" (lib.head services.opencode-a-setup.serviceConfig.ExecStart).text)
        (lib.elem "/run/opencode/tokens/a" services.opencode-a-setup.serviceConfig.BindReadOnlyPaths)
      ]
      [
        [ "opencode-keys.service" ]
        [ "opencode-keys.service" ]
        true
        true
        true
        true
      ];
  "without providers there is none of it" =
    let
      config = host.one (isolated { });
    in
    is
      {
        units = lib.filter (lib.hasInfix "keys") (lib.attrNames config.systemd.services ++ lib.attrNames config.environment.etc);
        policy = lib.attrNames (policy config);
        wants = config.systemd.services.opencode-a-paths.wants;
      }
      {
        units = [ ];
        policy = [ "a" ];
        wants = [ ];
      };
  "providers alone take the daemon, and no second lock" =
    let
      config = host.one keyed;
    in
    is
      {
        daemon = config.systemd.services ? opencode-egress;
        table = config.networking.nftables.tables ? opencode-egress;
        policies = lib.attrNames (policy config);
      }
      {
        daemon = true;
        table = false;
        policies = [ "keys" ];
      };
  "the templates for other systems are what this makes" =
    let
      templates = import ../keys/template.nix { inherit lib; };
    in
    is (lib.mapAttrs (name: _: builtins.readFile (../../dist + "/${name}")) templates) templates;
}

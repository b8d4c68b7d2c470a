# What agents are told of their policies, and what their programs are told to do at a refusal.
{ lib, host }:
let
  inherit (lib) elem hasInfix;
  inherit (import ./said.nix { inherit lib host; }) isolated;
  is = got: expected: { inherit got expected; };

  etc = "opencode-instructions/a/network.md";
  place = "/etc/${etc}";
  text = settings: (host.one (isolated settings)).environment.etc.${etc}.source.text;
  # The lines of the list.
  listed = settings: lib.filter (lib.hasPrefix "- `") (lib.splitString "\n" (lib.head (lib.splitString "Nothing else" (text settings))));
  count = n: lib.genList (n: "10.0.${toString n}.0/24") n;

  configOf =
    instance:
    builtins.fromJSON
      (host.one instance).environment.etc."opencode-instances/a".source.entries."opencode.json".text;
  server = config: {
    inherit (config.systemd.services.opencode-a) environment restartTriggers serviceConfig;
  };
  environment = unit: instance: (host.one instance).systemd.services.${unit}.environment;
  variables =
    unit: instance:
    lib.getAttrs (lib.attrNames (import ../units/fail-fast.nix { wgetrc = ""; })) (environment unit instance);
in
{
  "the text is that of dist, with the list" = is (text {
    presets = [ "npm" ];
    outboundAllowNames = [ "api.example.org" ];
    outboundAllowCidrs = [ "10.10.0.0/16" ];
    outboundDenyCidrs = [ "10.10.9.0/24" ];
  }) ''
    # Network access

    The operator of this machine decides what you, and the programs that you run, can reach:

    - `api.example.org`, `registry.npmjs.org`
    - `10.10.0.0/16`
    - but not `10.10.9.0/24`

    Nothing else is. A name alone is TCP port 443, `*.` is every name below, and a network alone is all of it.

    Servers that you start yourself work: bind 127.0.0.1 or ::1, from port 1024 on, and connect there.

    What is refused looks like a fault, and is none:

    - A connection or datagram fails with EPERM, "Operation not permitted". Some programs take that for the permissions of a file.
    - A name that is not listed does not exist: "Could not resolve host", ENOTFOUND, NXDOMAIN.
    - A TLS connection for a name that is not listed is reset.

    `opencode-egress why` prints what can be reached, what was refused lately, and the rule to ask for.

    It does not pass: do not try again, and do not look for a way round it, such as another address, mirror, proxy, tunnel or resolver. Do without, or tell the user what is missing and what it is for: "ask the operator for `NAME:PORT`".
  '';
  "the error of the policy, and the one that packets have" =
    is
      (map (errno: lib.filter (lib.hasPrefix "- A connection") (lib.splitString "\n" (text { inherit errno; }))) [
        "EPERM"
        "ECONNREFUSED"
      ])
      [
        [ "- A connection or datagram fails with EPERM, \"Operation not permitted\". Some programs take that for the permissions of a file." ]
        [
          "- A connection or datagram fails with ECONNREFUSED, \"Connection refused\", or with EPERM, \"Operation not permitted\". Some programs take that for the permissions of a file."
        ]
      ];
  "servers of its own, where they work" =
    is
      (map (ownLoopback: hasInfix "\nServers that you start yourself work: bind 127.0.0.1 or ::1, from port 1024 on, and connect there.\n\n" (text { inherit ownLoopback; })) [
        true
        false
      ])
      [
        true
        false
      ];
  "the command that it is told of is there, and where an upgrade does not change the unit" =
    is
      (map
        (instance: {
          path = elem "/etc/opencode-egress" (host.one instance).systemd.services.opencode-a.path;
          etc = (host.one instance).environment.etc ? "opencode-egress/bin/opencode-egress";
        })
        [
          (isolated { })
          { }
        ]
      )
      [
        {
          path = true;
          etc = true;
        }
        {
          path = false;
          etc = false;
        }
      ];
  "no place is left open" = is (hasInfix "@" (text { })) false;
  "nothing is listed" = is (hasInfix "\n- nothing\n" (text { })) true;
  "presets and lists do not repeat each other" = is (listed {
    presets = [
      "npm"
      "pypi"
    ];
    outboundAllowNames = [ "registry.npmjs.org" ];
  }) [ "- `registry.npmjs.org`, `pypi.org`, `files.pythonhosted.org`" ];
  "rules as they are typed" =
    is
      (listed {
        outboundAllow = [
          { name = "*.example.net"; }
          {
            name = "github.com";
            ports = [
              22
              443
            ];
          }
          {
            name = "all.example.org";
            protocol = "tcp";
          }
          {
            name = "quic.example.org";
            protocol = "any";
            ports = [ 443 ];
          }
          { cidr = "192.0.2.0/24"; }
          {
            cidr = "192.0.2.0/24";
            protocol = "any";
            ports = [ 53 ];
          }
          {
            cidr = "2001:db8::/32";
            protocol = "tcp";
            ports = [
              80
              "8000-8100"
            ];
          }
          {
            cidr = "2001:db8::/32";
            protocol = "icmp";
          }
        ];
      })
      [
        "- `*.example.net`, `github.com:22,443`, `all.example.org/tcp`, `quic.example.org:443/any`"
        "- `192.0.2.0/24`, `192.0.2.0/24:53`, `[2001:db8::/32]:80,8000-8100/tcp`, `2001:db8::/32/icmp`"
      ];
  "a long list is cut, and the rest counted" =
    let
      line = n: lib.head (listed { outboundAllowCidrs = count n; });
    in
    is
      {
        fits = hasInfix "more" (line 100);
        whole = lib.hasSuffix "`10.0.99.0/24`" (line 100);
        cut = lib.hasSuffix "`10.0.99.0/24`, and 20 more" (line 120);
      }
      {
        fits = false;
        whole = true;
        cut = true;
      };
  "in audit mode nothing is refused, and nothing told" = is (text {
    mode = "audit";
    outboundAllowCidrs = [ "10.0.0.0/8" ];
  }) "";

  "it is the last of the instructions" =
    is
      (map (instance: (configOf instance).instructions or null) [
        (isolated { })
        (
          isolated { }
          // {
            config.instructions = [
              "/etc/rules.md"
              "AGENTS.md"
            ];
          }
        )
        (isolated { tellAgent = false; } // { config.instructions = [ "/etc/rules.md" ]; })
        { config.instructions = [ "/etc/rules.md" ]; }
        { }
      ])
      [
        [ place ]
        [
          "/etc/rules.md"
          "AGENTS.md"
          place
        ]
        [ "/etc/rules.md" ]
        [ "/etc/rules.md" ]
        null
      ];
  "the unit sees it, where there is one" =
    is
      (map
        (
          instance:
          let
            config = host.one instance;
          in
          {
            there = config.environment.etc ? ${etc};
            seen = elem (dirOf place) config.systemd.services.opencode-a.serviceConfig.BindReadOnlyPaths;
          }
        )
        [
          (isolated { })
          (isolated { } // { configFile = "/etc/other.json"; })
          (isolated { tellAgent = false; })
          { networkIsolation.tellAgent = true; }
        ]
      )
      (
        map
          (told: {
            there = told;
            seen = told;
          })
          [
            true
            true
            false
            false
          ]
      );
  "a ready configuration is left alone" =
    is
      (host.one (isolated { } // { configFile = "/etc/other.json"; }))
        .environment.etc."opencode-instances/a".source.entries."opencode.json"
      "/etc/other.json";
  # Or the server would start again.
  "another list changes the text and not the unit, and so does another mode" =
    let
      with_ = settings: host.one (isolated settings);
      one = with_ { outboundAllowCidrs = [ "10.0.0.0/8" ]; };
      others = map with_ [
        { outboundAllowCidrs = [ "192.0.2.0/24" ]; }
        {
          outboundAllowCidrs = [ "10.0.0.0/8" ];
          mode = "audit";
        }
      ];
      of_ = config: config.environment.etc.${etc};
    in
    is
      {
        units = map (other: server other == server one) others;
        texts = map (other: (of_ other).source.text == (of_ one).source.text) others;
        # A link would lead out of what the unit sees.
        inherit (of_ one) mode;
      }
      {
        units = [
          true
          true
        ];
        texts = [
          false
          false
        ];
        mode = "0444";
      };

  "programs do not try again" =
    is
      (map (unit: variables unit (isolated { })) [
        "opencode-a"
        "opencode-a-setup"
      ])
      (
        lib.replicate 2 {
          CARGO_NET_RETRY = "0";
          OPENCODE_DISABLE_LSP_DOWNLOAD = "1";
          PIP_RETRIES = "0";
          UV_HTTP_RETRIES = "0";
          WGETRC = "/etc/opencode-instances/a/wgetrc";
          YARN_HTTP_RETRY = "0";
          npm_config_fetch_retries = "0";
        }
      );
  "wget's file is there" =
    is
      (host.one (isolated { })).environment.etc."opencode-instances/a".source.entries.wgetrc.text
      "tries = 1\n";
  "without a policy, or when they are to, they do" =
    is
      (map (instance: lib.intersectAttrs (import ../units/fail-fast.nix { wgetrc = ""; }) (environment "opencode-a" instance)) [
        { }
        (isolated { failFast = false; })
      ])
      [
        { }
        { }
      ];
  "what the instance sets counts, for npm in any case" =
    is
      (lib.mapAttrs (name: value: lib.filterAttrs (other: _: lib.toLower other == lib.toLower name) (
        environment "opencode-a" (isolated { } // { environment.${name} = value; })
      )) {
        PIP_RETRIES = "3";
        NPM_CONFIG_FETCH_RETRIES = "5";
      })
      {
        PIP_RETRIES.PIP_RETRIES = "3";
        NPM_CONFIG_FETCH_RETRIES.NPM_CONFIG_FETCH_RETRIES = "5";
      };
}

# What the parts of the module derive from the instances' providers.
{ config, lib }:
let
  inherit (lib) attrNames concatMap mapAttrs mapAttrsToList;
  instances = import ../instances.nix { inherit config lib; };
  inherit (import ./upstream.nix { inherit lib; }) parseHeader parseUpstream;
  inherit (import ./providers.nix) known other;

  firstPort = 20480;
  portCount = 2048;
in
rec {
  # The instances with providers.
  keyed = lib.filterAttrs (_: instance: instance.providers != { }) instances.enabled;
  exists = keyed != { };

  # name -> port on 127.0.0.1. It is made of the name, so that another instance does not change it; where two names make one, the next that is free.
  ports = lib.foldl' (
    taken: name:
    let
      wanted = lib.mod (lib.fromHexString (builtins.substring 0 6 (builtins.hashString "sha256" name))) portCount;
      free = slot: if lib.elem (firstPort + slot) (lib.attrValues taken) then free (lib.mod (slot + 1) portCount) else firstPort + slot;
    in
    taken // { ${name} = free wanted; }
  ) { } (attrNames keyed);

  # The file that an instance shows its right to its port by, where root made it and where the instance sees it.
  token = name: "/run/opencode/tokens/${name}";
  tokens = name: instance: lib.optional (instance.providers != { }) (token name);

  # A rule for the port, as the policy file has it.
  rule = name: {
    cidr = "127.0.0.1/32";
    protocol = "tcp";
    ports = [ (toString ports.${name}) ];
  };

  # opencode's configuration, with its providers where their keys are. Its own options stay.
  withProviders =
    name: instance:
    instance.config
    // lib.optionalAttrs (instance.providers != { }) {
      provider =
        lib.defaultTo { } instance.config.provider
        // mapAttrs (
          provider: settings:
          let
            own = lib.defaultTo { } (lib.defaultTo { } instance.config.provider).${provider} or null;
            listed = own.whitelist or null;
          in
          own
          // {
            options = lib.defaultTo { } (own.options or null) // {
              baseURL = "http://127.0.0.1:${toString ports.${name}}/${provider}${(parseUpstream settings.upstream).value.path}";
              apiKey = "{file:${token name}}";
            };
            # What it would be refused it does not offer, nor use for titles.
            whitelist = if listed != null then listed else settings.models;
          }
        ) instance.providers;
    };

  # Environment variables by which opencode gets a provider's key.
  variables =
    instance: provider:
    let
      own = lib.defaultTo { } (lib.defaultTo { } instance.config.provider).${provider} or null;
      usual = (known.${provider} or { }).variables
        or [ "${lib.toUpper (lib.replaceStrings [ "-" "." ] [ "_" "_" ] provider)}_API_KEY" ];
    in
    lib.unique (usual ++ lib.filter (name: builtins.match "[A-Za-z_][A-Za-z0-9_]*" name != null) (lib.defaultTo [ ] (own.env or null)));

  # Of every provider of every instance: all that nginx and what loads the keys is told.
  providers = lib.imap0 (id: provider: provider // { id = toString id; }) (
    concatMap lib.id (
      mapAttrsToList (
        instance: { providers, ... }:
        mapAttrsToList (name: settings: {
          inherit instance name;
          inherit (settings) keyFile models limit;
          upstream = (parseUpstream settings.upstream).value;
          # One that the operator gave may be in a network of its own.
          private = settings.upstream != (known.${name} or { }).upstream or null;
          header = (parseHeader settings.header).value;
          inherit (known.${name} or other) requests;
        }) providers
      ) keyed
    )
  );

  # Bytes of requests that nginx holds at once, at most, to read their models.
  bodies =
    let
      read = { models, requests, ... }: models != null && !lib.any (lib.hasInfix "<model>") requests;
    in
    lib.foldl' (sum: { limit, ... }: sum + limit.parallel * limit.bytes) 0 (lib.filter read providers);

  # As nginx.nix takes them.
  nginxInstances = mapAttrs (name: _: {
    port = ports.${name};
    providers = lib.listToAttrs (
      map (provider: lib.nameValuePair provider.name provider) (
        lib.filter (provider: provider.instance == name) providers
      )
    );
  }) keyed;

  # What opencode-keys-load is told.
  list =
    let
      variable = header: lib.toLower (lib.replaceStrings [ "-" ] [ "_" ] header);
    in
    lib.concatStrings (
      mapAttrsToList (name: instance: "instance ${name} ${instance.user} ${toString ports.${name}}\n") keyed
      ++ map (
        {
          id,
          instance,
          name,
          header,
          keyFile,
          ...
        }:
        "key ${id} ${instance} ${name} ${variable header.name} ${lib.defaultTo "-" header.scheme} ${keyFile}\n"
      ) providers
    );

  # Its own instance.
  policy = {
    units = [ "opencode-keys.service" ];
    mode = "enforce";
    allow = lib.unique (
      map (
        { upstream, private, ... }:
        {
          name = upstream.host;
          ports = [ (toString upstream.port) ];
        }
        // lib.optionalAttrs private { inherit private; }
      ) providers
    );
    deny = [ ];
    listen = map (port: {
      address = "127.0.0.1";
      inherit port;
      open = false;
    }) (lib.attrValues ports);
    limits.sockets = 16384;
  };
}

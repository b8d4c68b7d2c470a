# nginx.conf of opencode-keys.service: from what `instances` says, and nothing else, to text. It holds no secret; those are in two files that
# opencode-keys-load writes when the unit starts and when it is reloaded.
{ lib }:
let
  inherit (lib) concatMapStringsSep concatStringsSep escapeRegex mapAttrsToList optionals;
  inherit (import ./providers.nix) passed;
  asksForOne = import ./asks-for.nix;

  lines = concatStringsSep "\n";
  indent = text: concatMapStringsSep "\n" (line: if line == "" then line else "  ${line}") (lib.splitString "\n" text);
  block = head: body: "${head} {\n${indent (lines body)}\n}";

  variable = header: "$http_${lib.toLower (lib.replaceStrings [ "-" ] [ "_" ] header)}";

  # An answer that every client of the AI SDK shows, and that opencode does not try again after: not one of 408, 409, 429 and 500 up.
  refused =
    status: message:
    "return ${toString status} '${
      builtins.toJSON {
        type = "error";
        error = {
          type = "invalid_request_error";
          message = "opencode-keys: ${message}";
        };
      }
    }';";

  # As many as nginx has room for, and as are worth reading.
  few =
    models:
    if lib.length models > 20 then
      "${concatStringsSep ", " (lib.take 3 models)} and ${toString (lib.length models - 3)} others"
    else
      concatStringsSep ", " models;

  ofProvider =
    runtime: name: { id, ... }@provider:
    let
      inherit (provider) upstream models limit;
      byPath = lib.any (lib.hasInfix "<model>") provider.requests;
      target =
        request:
        let
          parts = lib.splitString " " request;
          method = lib.head parts;
          path = lib.last parts;
          of = lib.splitString "<model>" path;
          forModel =
            model:
            "'~^${method} /${escapeRegex "${name}${upstream.path}${lib.head of}"}(?<keys_model_${id}>${model})${escapeRegex (lib.last of)}$' ${upstream.path}${lib.head of}$keys_model_${id}${lib.last of};";
        in
        if lib.length of == 1 then
          [ ''"${method} /${name}${upstream.path}${path}" ${upstream.path}${path};'' ]
        else if models == null then
          [ (forModel "[A-Za-z0-9._-]+") ]
        else
          map (model: forModel (escapeRegex model)) models;
      inBody = models != null && !byPath;
      host = upstream.host + lib.optionalString (upstream.port != 443) ":${toString upstream.port}";
      # Where the request comes in, and so before its body is read.
      limits = [
        "limit_conn keys_parallel_${id} ${toString limit.parallel};"
      ]
      ++ optionals (limit.requests != null) [
        # One is no burst to nginx.
        "limit_req zone=keys_${id}${lib.optionalString (limit.requests > 1) " burst=${toString (limit.requests - 1)}"} nodelay;"
      ];
      pass = [
        "client_max_body_size ${toString limit.bytes};"
        # nginx takes no variable that is set nowhere.
        "set $keys_asked ${if models != null || byPath then "$keys_model_${id}" else ''""''};"
        "proxy_pass https://${upstream.host}:${toString upstream.port}$keys_path_${id}$is_args$args;"
        "proxy_ssl_name ${upstream.host};"
        "proxy_set_header Host ${host};"
        ''proxy_set_header Connection "";''
        "proxy_set_header ${provider.header.name} $keys_key_${id};"
      ]
      ++ map (
        header:
        # A body that was read as JSON is not to be read as a form, or in UTF-7.
        "proxy_set_header ${header} ${if inBody && header == "Content-Type" then "application/json" else variable header};"
      ) passed;
    in
    {
      http = [
        (block ''map "$request_method $uri" $keys_path_${id}'' ([ ''default "";'' ] ++ lib.concatMap target provider.requests))
        "limit_conn_zone $server_port zone=keys_parallel_${id}:1m;"
      ]
      ++ optionals (limit.requests != null) [
        "limit_req_zone $server_port zone=keys_${id}:1m rate=${toString limit.requests}r/m;"
      ]
      ++ optionals inBody [
        (block "map $request_body $keys_named_${id}" [
          ''default "";''
          "'~${asksForOne}' $keys_named;"
        ])
        # As expressions, for nginx compares texts without regard to case.
        (block "map $keys_named_${id} $keys_model_${id}" (
          [ ''default "";'' ] ++ map (model: "'~^${escapeRegex model}$' $keys_named_${id};") models
        ))
        # What has no body asks for no model.
        (block ''map "$request_method $keys_model_${id}" $keys_may_${id}'' [
          ''default "";''
          "'~^GET |^POST .' 1;"
        ])
      ];
      server = [
        # nginx would have its client go there with a slash.
        "location = /${name} { ${refused 404 "of ${name} only paths below /${name}/ are passed on"} }"
        (block "location /${name}/" (
          [
            "if ($keys_known_${id} = \"\") { ${refused 401 "this needs the token of the instance that the port is for"} }"
            "if ($keys_path_${id} = \"\") { ${refused 404 "of ${name} only these are passed on: ${concatMapStringsSep ", " (lib.replaceStrings [ " " ] [ " ${upstream.path}" ]) provider.requests}"} }"
            "if ($keys_bodied) { ${refused 400 "a GET has no body"} }"
          ]
          ++ limits
          ++ (
            if !inBody then
              pass
            else
              [
                # `mirror` reads the body. Then nginx looks for a file below a directory that has the model's verdict in its name, finds none, and goes on to the other
                # location. The verdict is found here, where nothing is logged: the log of a body that is too intricate for PCRE would have the body.
                "error_log stderr emerg;"
                "root ${runtime}/none$keys_may_${id};"
                "client_max_body_size ${toString limit.bytes};"
                "client_body_in_single_buffer on;"
                "client_body_buffer_size ${toString limit.bytes};"
                "mirror /read;"
                "error_page 404 = @model_${id};"
              ]
          )
        ))
      ]
      ++ optionals inBody [
        (block "location @model_${id}" (
          [
            "if ($keys_may_${id} = \"\") { ${refused 403 "the model is not among those that the instance may ask for: ${few models}"} }"
          ]
          ++ pass
        ))
      ];
    };

  ofInstance =
    runtime: name:
    { port, providers }:
    let
      parts = mapAttrsToList (ofProvider runtime) providers;
    in
    {
      http = lib.concatMap (part: part.http) parts;
      server = block "server" (
        [
          "listen 127.0.0.1:${toString port};"
          "if ($http_host != 127.0.0.1:${toString port}) { ${refused 421 "this is 127.0.0.1:${toString port}, and no other host"} }"
          "if ($request !~ '^[A-Z]+ /') { ${refused 400 "this is no proxy: ask for a path"} }"
          # A path as it would be passed on: without `..`, `//` and escapes.
          "if ($request_uri != $uri$is_args$args) { ${refused 400 "the path is not in its shortest form"} }"
          "if ($args !~ '^(?:alt=sse|beta=true)?$') { ${refused 400 "no query but alt=sse and beta=true is passed on"} }"
          # What the other end then sends would go on unlooked at.
          "if ($http_upgrade) { ${refused 400 "a connection stays what it is: no Upgrade is passed on"} }"
          "location / { ${refused 404 "no such provider: ${concatStringsSep ", " (lib.attrNames providers)}"} }"
          "location = /read { internal; return 204; }"
          "location @redirect { ${refused 403 "the provider sends its client elsewhere, which is not passed on"} }"
        ]
        ++ lib.concatMap (part: part.server) parts
      );
    };

  # Whose a request is: of the port and the path, which are there for every request that has a line of log.
  names = instances: [
    (block "map $server_port $keys_instance" (
      [ "default -;" ] ++ mapAttrsToList (name: { port, ... }: "${toString port} ${name};") instances
    ))
    (block "map $uri $keys_provider" (
      [ "default -;" ]
      ++ map (name: "'~^/${escapeRegex name}/' ${name};") (
        lib.unique (lib.concatMap ({ providers, ... }: lib.attrNames providers) (lib.attrValues instances))
      )
    ))
  ];

  # The model is known of some requests.
  model = block "map $keys_asked $keys_model" [
    ''"" -;''
    "default $keys_asked;"
  ];
  # A GET with a body, at which nobody looks: some servers take it for the next request.
  bodied = block ''map "$request_method $http_content_length $http_transfer_encoding" $keys_bodied'' [
    ''default "";''
    ''"~^GET 0? $" "";''
    ''"~^GET " 1;''
  ];
  # Of the address that answered, where others did not.
  first = block "map $upstream_header_time $keys_first" [
    ''"" -;''
    "default $upstream_header_time;"
    "'~[ ,:](?<keys_last>[-.0-9]+)$' $keys_last;"
  ];
  # What a client chooses comes last.
  logged = "instance=$keys_instance provider=$keys_provider model=$keys_model method=$request_method status=$status received=$request_length sent=$bytes_sent seconds=$request_time first=$keys_first path=\"$uri\"";

  common = runtime: [
    "daemon on;"
    "pid ${runtime}/nginx.pid;"
    "error_log stderr error;"
    # Some thousand streams each.
    "worker_processes 4;"
    "# What a reload replaces ends with its last stream, but not later: they are not to be more than the unit may have."
    "worker_shutdown_timeout 1h;"
    (block "events" [ "worker_connections 16384;" ])
  ];
  temporary = runtime: map (kind: "${kind}_temp_path ${runtime}/${kind};") [ "client_body" "proxy" "fastcgi" "uwsgi" "scgi" ];
in
{
  config =
    {
      # A directory of its own in memory, and whom TLS trusts.
      runtime,
      trusted,
      # Whom names are asked of. The kernel hands the question to the resolver of the unit's instance, whoever this is.
      resolver,
      # name -> { port, providers }
      instances,
    }:
    let
      parts = mapAttrsToList (ofInstance runtime) instances;
    in
    lines (
      common runtime
      ++ [
        (block "http" (
          temporary runtime
          ++ [
            "map_hash_bucket_size 256;"
            "variables_hash_max_size 4096;"
            "include ${runtime}/tokens.conf;"
            "include ${runtime}/keys.conf;"
            "default_type application/json;"
            "server_tokens off;"
            "log_format keys '${logged}';"
            "access_log syslog:server=unix:/dev/log,nohostname,tag=opencode_keys keys;"
            ""
            "# Long requests, and answers that come piece by piece and may be silent for long."
            "client_body_timeout 60s;"
            "# A connection for each request: one that was kept would be closed under a client that just sends the next, when keys are read anew."
            "keepalive_timeout 0;"
            "proxy_http_version 1.1;"
            "proxy_request_buffering off;"
            "proxy_buffering off;"
            "# An answer's headers: as many as Node takes."
            "proxy_buffer_size 16k;"
            "proxy_buffers 8 16k;"
            "proxy_max_temp_file_size 0;"
            "proxy_read_timeout 1h;"
            "proxy_send_timeout 60s;"
            "proxy_connect_timeout 20s;"
            ""
            "# To the provider, and to nobody else."
            "resolver ${resolver};"
            "resolver_timeout 10s;"
            "proxy_ssl_server_name on;"
            "proxy_ssl_verify on;"
            "proxy_ssl_verify_depth 5;"
            "proxy_ssl_trusted_certificate ${trusted};"
            "proxy_ssl_protocols TLSv1.2 TLSv1.3;"
            "proxy_pass_request_headers off;"
            "proxy_redirect off;"
            "# Nor does an answer have a say in this, or send the client elsewhere."
            "proxy_ignore_headers X-Accel-Buffering X-Accel-Charset X-Accel-Expires X-Accel-Limit-Rate X-Accel-Redirect;"
            "proxy_hide_header Alt-Svc;"
            "proxy_hide_header Location;"
            "proxy_hide_header Refresh;"
            "proxy_hide_header Set-Cookie;"
            "# A host may have no way to some of the provider's addresses, IPv6 ones, say: then another is tried, as long as none has the request."
            "proxy_next_upstream error timeout;"
            "proxy_intercept_errors on;"
            "recursive_error_pages on;"
            "error_page 300 301 302 303 305 307 308 = @redirect;"
            "limit_conn_status 429;"
            "limit_req_status 429;"
            ""
          ]
          ++ names instances
          ++ [ model bodied first ]
          ++ lib.concatMap (part: part.http) parts
          ++ map (part: part.server) parts
        ))
        ""
      ]
    );

  # What answers in its place while it does not run.
  gone =
    { runtime, ports }:
    lines (
      common runtime
      ++ [
        (block "http" (
          temporary runtime
          ++ [
            "default_type application/json;"
            "server_tokens off;"
            "access_log off;"
            "client_max_body_size 0;"
            (block "server" (
              map (port: "listen 127.0.0.1:${toString port};") ports
              ++ [
                (refused 424 "opencode-keys.service does not run on this host, so no provider is reached; `systemctl status opencode-keys` says why")
              ]
            ))
          ]
        ))
        ""
      ]
    );
}

-- The data model of backendai-mgr, version 3. PostgreSQL 14 or newer, no extensions.
--
-- Conventions
--   Names of constraints: pk_, uq_, ck_, fk_, ix_ + table + column or purpose.
--   Slot columns are jsonb objects, slot name -> decimal amount as text ("2", "0.5", "Infinity").
--   Timestamps are timestamptz; the application gives them, so that one clock decides within a transaction.
--   Order of locks, the same everywhere, so that writers queue instead of deadlocking:
--     join_tokens, agent_leases, then sessions by id, then kernels, then agents by id, then images by name, then all
--     aliases at once, then the event log.

CREATE TABLE schema_migrations (
    version    integer     CONSTRAINT pk_schema_migrations PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO schema_migrations (version, name) VALUES (3, 'agents that join with a token');


-- ------------------------------------------------------------------ wake-ups

-- One channel for all; the payload is only a topic. Who hears it reads the tables, from its own cursor.
CREATE FUNCTION notify_topic() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('backendai_mgr', TG_ARGV[0]);
    RETURN NULL;
END $$;


-- ------------------------------------------------------------------ accounts

CREATE TYPE userrole AS ENUM (
    'superadmin',           -- everything, in every domain
    'admin',                -- its own domain
    'user',                 -- its own sessions and folders
    'monitor'               -- reads, starts nothing
);

CREATE TYPE userstatus AS ENUM (
    'active',               -- the only one that may log in
    'inactive',             -- suspended by an administrator
    'deleted',              -- gone; kept for the accounts of what it used
    'before-verification'   -- signed up, address not confirmed
);

CREATE TYPE defaultforunspecified AS ENUM (
    'LIMITED',              -- a slot that the policy does not name is 0
    'UNLIMITED'             -- a slot that the policy does not name has no limit
);

CREATE TABLE domains (
    name                      varchar(64)  CONSTRAINT pk_domains PRIMARY KEY,
    description               varchar(512),
    is_active                 boolean      NOT NULL DEFAULT true,
    created_at                timestamptz  NOT NULL DEFAULT now(),
    modified_at               timestamptz  NOT NULL DEFAULT now(),
    total_resource_slots      jsonb        NOT NULL DEFAULT '{}',
    allowed_vfolder_hosts     varchar[]    NOT NULL DEFAULT '{}',
    allowed_docker_registries varchar[]    NOT NULL DEFAULT '{}',
    integration_id            varchar(512),
    dotfiles                  bytea        NOT NULL DEFAULT '\x90'   -- msgpack: empty list
);

CREATE TABLE groups (
    id                    uuid         CONSTRAINT pk_groups PRIMARY KEY DEFAULT gen_random_uuid(),
    name                  varchar(64)  NOT NULL,
    description           varchar(512),
    is_active             boolean      NOT NULL DEFAULT true,
    created_at            timestamptz  NOT NULL DEFAULT now(),
    modified_at           timestamptz  NOT NULL DEFAULT now(),
    integration_id        varchar(512),
    domain_name           varchar(64)  NOT NULL
        CONSTRAINT fk_groups_domain_name_domains REFERENCES domains (name) ON UPDATE CASCADE ON DELETE CASCADE,
    total_resource_slots  jsonb        NOT NULL DEFAULT '{}',
    allowed_vfolder_hosts varchar[]    NOT NULL DEFAULT '{}',
    dotfiles              bytea        NOT NULL DEFAULT '\x90',
    CONSTRAINT uq_groups_name_domain_name UNIQUE (name, domain_name)
);
CREATE INDEX ix_groups_domain_name ON groups (domain_name);

CREATE TABLE users (
    uuid                 uuid          CONSTRAINT pk_users PRIMARY KEY DEFAULT gen_random_uuid(),
    username             varchar(64)   CONSTRAINT uq_users_username UNIQUE,
    email                varchar(64)   NOT NULL,
    password             varchar,      -- scrypt$n$r$p$salt$hash, see domain/passwords.py
    need_password_change boolean       NOT NULL DEFAULT false,
    full_name            varchar(64),
    description          varchar(500),
    status               userstatus    NOT NULL DEFAULT 'active',
    status_info          varchar,
    created_at           timestamptz   NOT NULL DEFAULT now(),
    modified_at          timestamptz   NOT NULL DEFAULT now(),
    integration_id       varchar(512),
    domain_name          varchar(64)
        CONSTRAINT fk_users_domain_name_domains REFERENCES domains (name),
    role                 userrole      NOT NULL DEFAULT 'user'
);
CREATE UNIQUE INDEX ix_users_email ON users (email);
CREATE INDEX ix_users_domain_name ON users (domain_name);

CREATE TABLE association_groups_users (
    user_id  uuid NOT NULL
        CONSTRAINT fk_association_groups_users_user_id_users
        REFERENCES users (uuid) ON UPDATE CASCADE ON DELETE CASCADE,
    group_id uuid NOT NULL
        CONSTRAINT fk_association_groups_users_group_id_groups
        REFERENCES groups (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT uq_association_user_id_group_id UNIQUE (user_id, group_id)
);

CREATE TABLE keypair_resource_policies (
    name                       varchar(256) CONSTRAINT pk_keypair_resource_policies PRIMARY KEY,
    created_at                 timestamptz  NOT NULL DEFAULT now(),
    default_for_unspecified    defaultforunspecified NOT NULL DEFAULT 'LIMITED',
    total_resource_slots       jsonb        NOT NULL DEFAULT '{}',
    max_session_lifetime       integer      NOT NULL DEFAULT 0,    -- seconds, 0: no limit
    max_concurrent_sessions    integer      NOT NULL,              -- 0 or less: no limit
    max_containers_per_session integer      NOT NULL,
    max_vfolder_count          integer      NOT NULL,              -- 0: no limit
    max_vfolder_size           bigint       NOT NULL,
    idle_timeout               bigint       NOT NULL,              -- seconds; 0 never, less: the checker's default
    allowed_vfolder_hosts      varchar[]    NOT NULL DEFAULT '{}'
);

CREATE TABLE keypairs (
    access_key       varchar(20)    CONSTRAINT pk_keypairs PRIMARY KEY,
    secret_key       varchar(40)    NOT NULL,
    user_id          varchar(256),  -- the owner's e-mail
    is_active        boolean        NOT NULL DEFAULT true,
    is_admin         boolean        NOT NULL DEFAULT false,
    created_at       timestamptz    NOT NULL DEFAULT now(),
    modified_at      timestamptz    NOT NULL DEFAULT now(),
    last_used        timestamptz,
    rate_limit       integer        NOT NULL DEFAULT 30000,        -- requests in any 15 minutes
    num_queries      integer        NOT NULL DEFAULT 0,
    ssh_public_key   varchar(750),
    ssh_private_key  varchar(2000),
    "user"           uuid           NOT NULL CONSTRAINT fk_keypairs_user_users REFERENCES users (uuid),
    resource_policy  varchar(256)   NOT NULL
        CONSTRAINT fk_keypairs_resource_policy_keypair_resource_policies
        REFERENCES keypair_resource_policies (name),
    dotfiles         bytea          NOT NULL DEFAULT '\x90',
    bootstrap_script text           NOT NULL DEFAULT ''
);
CREATE INDEX ix_keypairs_user ON keypairs ("user");
CREATE INDEX ix_keypairs_user_id ON keypairs (user_id);

-- Workers keep key pairs in memory; whatever a cached one was made from tells them to drop it.
-- Columns that change with use (last_used, num_queries) are left out on purpose.
CREATE TRIGGER tr_keypairs_keys AFTER INSERT OR DELETE OR
    UPDATE OF access_key, secret_key, is_active, is_admin, rate_limit, "user", resource_policy ON keypairs
    FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('keys');
CREATE TRIGGER tr_users_keys AFTER INSERT OR DELETE OR
    UPDATE OF uuid, email, status, role, domain_name ON users
    FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('keys');
CREATE TRIGGER tr_keypair_resource_policies_keys AFTER INSERT OR DELETE OR UPDATE ON keypair_resource_policies
    FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('keys');


-- ------------------------------------------------------------------ scaling groups, agents, images

CREATE TABLE scaling_groups (
    name           varchar(64)   CONSTRAINT pk_scaling_groups PRIMARY KEY,
    description    varchar(512),
    is_active      boolean       NOT NULL DEFAULT true,
    created_at     timestamptz   NOT NULL DEFAULT now(),
    wsproxy_addr   varchar(1024),
    driver         varchar(64)   NOT NULL DEFAULT 'static',
    driver_opts    jsonb         NOT NULL DEFAULT '{}',
    scheduler      varchar(64)   NOT NULL DEFAULT 'fifo',
    scheduler_opts jsonb         NOT NULL DEFAULT '{}'
);

CREATE TABLE sgroups_for_domains (
    scaling_group varchar(64) NOT NULL
        CONSTRAINT fk_sgroups_for_domains_scaling_group_scaling_groups
        REFERENCES scaling_groups (name) ON UPDATE CASCADE ON DELETE CASCADE,
    domain        varchar(64) NOT NULL
        CONSTRAINT fk_sgroups_for_domains_domain_domains
        REFERENCES domains (name) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT uq_sgroup_domain UNIQUE (scaling_group, domain)
);
CREATE INDEX ix_sgroups_for_domains_domain ON sgroups_for_domains (domain);

CREATE TABLE sgroups_for_groups (
    scaling_group varchar(64) NOT NULL
        CONSTRAINT fk_sgroups_for_groups_scaling_group_scaling_groups
        REFERENCES scaling_groups (name) ON UPDATE CASCADE ON DELETE CASCADE,
    "group"       uuid        NOT NULL
        CONSTRAINT fk_sgroups_for_groups_group_groups
        REFERENCES groups (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT uq_sgroup_ugroup UNIQUE (scaling_group, "group")
);
CREATE INDEX ix_sgroups_for_groups_group ON sgroups_for_groups ("group");

CREATE TABLE sgroups_for_keypairs (
    scaling_group varchar(64) NOT NULL
        CONSTRAINT fk_sgroups_for_keypairs_scaling_group_scaling_groups
        REFERENCES scaling_groups (name) ON UPDATE CASCADE ON DELETE CASCADE,
    access_key    varchar(20) NOT NULL
        CONSTRAINT fk_sgroups_for_keypairs_access_key_keypairs
        REFERENCES keypairs (access_key) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT uq_sgroup_akey UNIQUE (scaling_group, access_key)
);
CREATE INDEX ix_sgroups_for_keypairs_access_key ON sgroups_for_keypairs (access_key);

CREATE TYPE agentstatus AS ENUM (
    'ALIVE',        -- reports arrive
    'LOST',         -- registered and not yet heard, or silent for longer than the heartbeat timeout
    'RESTARTING',   -- said that it restarts
    'TERMINATED',   -- left for good, until it registers again
    'UPDATING',     -- kept out while its software is replaced; a heartbeat does not end this
    'UNHEALTHY'     -- reports arrive, but it failed a check; a heartbeat does not end this
);

-- The managers' key pair on the agent link: one row, made by the first worker. Not a setting, since
-- administrators read those.
CREATE TABLE link_keys (
    only_one   boolean     CONSTRAINT pk_link_keys PRIMARY KEY DEFAULT true
        CONSTRAINT ck_link_keys_only_one CHECK (only_one),
    public_key text        NOT NULL,                       -- Z85
    secret_key text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What lets agents join. The secret itself is nowhere.
CREATE TABLE join_tokens (
    id            text        CONSTRAINT pk_join_tokens PRIMARY KEY,
    digest        text        NOT NULL,                    -- SHA-256 of the secret
    scaling_group varchar(64) NOT NULL
        CONSTRAINT fk_join_tokens_scaling_group_scaling_groups
        REFERENCES scaling_groups (name) ON DELETE CASCADE,
    uses          integer     NOT NULL CONSTRAINT ck_join_tokens_uses CHECK (uses >= 0),   -- that are left
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL
);

CREATE TABLE agents (
    id              varchar(64)  COLLATE "C" CONSTRAINT pk_agents PRIMARY KEY,
    status          agentstatus  NOT NULL DEFAULT 'LOST',
    status_changed  timestamptz  NOT NULL DEFAULT now(),
    region          varchar(64)  NOT NULL DEFAULT '',
    scaling_group   varchar(64)  NOT NULL DEFAULT 'default'
        CONSTRAINT fk_agents_scaling_group_scaling_groups REFERENCES scaling_groups (name),
    schedulable     boolean      NOT NULL DEFAULT true,    -- an administrator's word
    drain           boolean      NOT NULL DEFAULT false,   -- takes nothing new; what runs may end by itself
    available_slots jsonb        NOT NULL DEFAULT '{}',    -- capacity, as reported
    occupied_slots  jsonb        NOT NULL DEFAULT '{}',    -- sum over its occupying kernels, kept by the writers
    addr            varchar(128) NOT NULL,
    first_contact   timestamptz  NOT NULL DEFAULT now(),
    lost_at         timestamptz,
    version         varchar(64)  NOT NULL DEFAULT '',
    architecture    varchar(32)  NOT NULL,
    compute_plugins jsonb        NOT NULL DEFAULT '{}',
    missing         jsonb        NOT NULL DEFAULT '{}',    -- capability that isolation lacks -> reason
    boot            text,                                  -- changes with each start of the agent
    report_digest   text,        -- of the report stored last: an equal one need not be written again
    public_key      text,        -- of the link, Z85; null: in plain, on loopback only
    joined_with     text         -- the token of its latest join, which it may repeat
        CONSTRAINT fk_agents_joined_with_join_tokens REFERENCES join_tokens (id) ON DELETE SET NULL,
    trouble         text         -- why the manager cannot talk to it, in a sentence; null: it reports, or is silent
);
CREATE UNIQUE INDEX uq_agents_public_key ON agents (public_key);
CREATE INDEX ix_agents_scaling_group_status ON agents (scaling_group, status);

-- The right of one worker to write what an agent reports. Writers of reports share-lock the row while they
-- write, so that a takeover waits for them and they never write after it.
CREATE TABLE agent_leases (
    agent_id   varchar(64) COLLATE "C" CONSTRAINT pk_agent_leases PRIMARY KEY
        CONSTRAINT fk_agent_leases_agent_id_agents REFERENCES agents (id) ON DELETE CASCADE,
    owner      text,                                       -- null: free
    epoch      bigint      NOT NULL DEFAULT 0,             -- grows at each takeover
    expires_at timestamptz NOT NULL DEFAULT '-infinity'    -- by the server's clock
);
CREATE INDEX ix_agent_leases_owner ON agent_leases (owner);

CREATE TYPE imagetype AS ENUM (
    'COMPUTE',      -- for users' sessions
    'SYSTEM',       -- for the system's own sessions
    'SERVICE'       -- for model services
);

CREATE TABLE images (
    id            uuid        CONSTRAINT pk_images PRIMARY KEY DEFAULT gen_random_uuid(),
    name          varchar     NOT NULL,                    -- canonical: registry/image:tag
    image         varchar     NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    tag           text,
    registry      varchar     NOT NULL,
    architecture  varchar     NOT NULL DEFAULT 'x86_64',
    config_digest varchar     NOT NULL,
    size_bytes    bigint      NOT NULL DEFAULT 0,
    type          imagetype   NOT NULL DEFAULT 'COMPUTE',
    accelerators  varchar,
    labels        jsonb       NOT NULL DEFAULT '{}',
    resources     jsonb       NOT NULL DEFAULT '{}',       -- slot -> {"min": text, "max": text or null}
    CONSTRAINT uq_images_name_architecture UNIQUE (name, architecture)
);
CREATE INDEX ix_images_registry ON images (registry);

CREATE TABLE image_aliases (
    id    uuid    CONSTRAINT pk_image_aliases PRIMARY KEY DEFAULT gen_random_uuid(),
    alias varchar NOT NULL,
    image uuid    NOT NULL
        CONSTRAINT fk_image_aliases_image_images REFERENCES images (id) ON DELETE CASCADE
);
CREATE UNIQUE INDEX ix_image_aliases_alias ON image_aliases (alias);
CREATE INDEX ix_image_aliases_image ON image_aliases (image);

-- Which images an agent can start, from its reports.
CREATE TABLE agent_images (
    agent_id     varchar(64) COLLATE "C" NOT NULL
        CONSTRAINT fk_agent_images_agent_id_agents REFERENCES agents (id) ON DELETE CASCADE,
    name         varchar NOT NULL,
    architecture varchar NOT NULL,
    aliases      varchar[] NOT NULL DEFAULT '{}',          -- further names that the agent claims for it
    CONSTRAINT pk_agent_images PRIMARY KEY (agent_id, name, architecture)
);
CREATE INDEX ix_agent_images_name ON agent_images (name, architecture);

CREATE TABLE resource_presets (
    name           varchar(256) CONSTRAINT pk_resource_presets PRIMARY KEY,
    resource_slots jsonb        NOT NULL,
    shared_memory  bigint                                  -- bytes
);


-- ------------------------------------------------------------------ sessions and kernels

-- The order is the API's. domain/lifecycle.py says which may follow which, and by when each must be left.
CREATE TYPE kernelstatus AS ENUM (
    'PENDING',      -- waits for the scheduler; holds nothing
    'SCHEDULED',    -- an agent is chosen and its slots are taken
    'PREPARING',    -- the agent is told to start it
    'BUILDING',     -- reserved
    'PULLING',      -- the agent fetches the image
    'RUNNING',      -- the agent reports it
    'RESTARTING',   -- between two lives on the same agent
    'RESIZING',     -- reserved
    'SUSPENDED',    -- reserved
    'TERMINATING',  -- to end: still on the agent, no longer in the quotas
    'TERMINATED',   -- ended after it had begun to exist (terminal)
    'ERROR',        -- an operation failed half-way; the reaper ends it
    'CANCELLED'     -- ended before it ran (terminal)
);

CREATE TYPE sessiontypes AS ENUM (
    'INTERACTIVE',  -- lives until it is ended
    'BATCH'         -- ends with its startup command
);

CREATE TYPE sessionresult AS ENUM (
    'UNDEFINED',    -- interactive, or not over
    'SUCCESS',      -- the batch command ended with 0
    'FAILURE'       -- it did not
);

CREATE TABLE sessions (
    id                uuid         CONSTRAINT pk_sessions PRIMARY KEY DEFAULT gen_random_uuid(),
    creation_id       varchar(32)  NOT NULL,
    name              varchar(64)  COLLATE "C" NOT NULL,   -- bytewise order serves prefix look-ups
    type              sessiontypes NOT NULL DEFAULT 'INTERACTIVE',
    cluster_mode      varchar(16)  NOT NULL DEFAULT 'single-node'
        CONSTRAINT ck_sessions_cluster_mode CHECK (cluster_mode IN ('single-node', 'multi-node')),
    cluster_size      integer      NOT NULL DEFAULT 1 CONSTRAINT ck_sessions_cluster_size CHECK (cluster_size > 0),
    scaling_group     varchar(64)  CONSTRAINT fk_sessions_scaling_group_scaling_groups REFERENCES scaling_groups (name),
    domain_name       varchar(64)  NOT NULL CONSTRAINT fk_sessions_domain_name_domains REFERENCES domains (name),
    group_id          uuid         NOT NULL CONSTRAINT fk_sessions_group_id_groups REFERENCES groups (id),
    user_uuid         uuid         NOT NULL CONSTRAINT fk_sessions_user_uuid_users REFERENCES users (uuid),
    access_key        varchar(20)  NOT NULL
        CONSTRAINT fk_sessions_access_key_keypairs REFERENCES keypairs (access_key),
    image             varchar(512) NOT NULL,
    architecture      varchar(32)  NOT NULL DEFAULT 'x86_64',
    registry          varchar(512) NOT NULL,
    tag               varchar(64),
    requested_slots   jsonb        NOT NULL,               -- sum over its kernels
    environ           varchar[]    NOT NULL DEFAULT '{}',  -- "NAME=value"
    mounts            varchar[]    NOT NULL DEFAULT '{}',
    mount_map         jsonb        NOT NULL DEFAULT '{}',
    vfolder_mounts    jsonb        NOT NULL DEFAULT '[]',
    resource_opts     jsonb        NOT NULL DEFAULT '{}',
    bootstrap_script  text,
    startup_command   text,
    starts_at         timestamptz,
    preopen_ports     integer[]    NOT NULL DEFAULT '{}',
    callback_url      text,
    internal_data     jsonb        NOT NULL DEFAULT '{}',
    result            sessionresult NOT NULL DEFAULT 'UNDEFINED',
    num_queries       bigint       NOT NULL DEFAULT 0,
    created_at        timestamptz  NOT NULL,
    terminated_at     timestamptz,
    status            kernelstatus NOT NULL DEFAULT 'PENDING',   -- follows from its kernels, never set alone
    status_changed    timestamptz  NOT NULL,
    deadline          timestamptz,
    -- Why it waits or why it ended: {"info": word} and, while PENDING, "sentence", "data", "retries", "last_try".
    reasons           jsonb        NOT NULL DEFAULT '{}',
    CONSTRAINT ck_sessions_ended CHECK ((status IN ('TERMINATED', 'CANCELLED')) = (terminated_at IS NOT NULL)),
    CONSTRAINT ck_sessions_bounded CHECK (
        deadline IS NOT NULL OR status IN ('PENDING', 'RUNNING', 'TERMINATED', 'CANCELLED'))
);
-- Bears the promise of one live session per owner and name: of two inserts the second waits for the first one's
-- commit and then finds the name taken.
CREATE UNIQUE INDEX uq_sessions_live_name ON sessions (access_key, name)
    WHERE status NOT IN ('TERMINATED', 'CANCELLED');
CREATE INDEX ix_sessions_pending ON sessions (scaling_group, created_at, id) WHERE status = 'PENDING';
CREATE INDEX ix_sessions_live ON sessions (access_key, status) WHERE status NOT IN ('TERMINATED', 'CANCELLED');
CREATE INDEX ix_sessions_access_key_created_at ON sessions (access_key, created_at, id);
CREATE INDEX ix_sessions_access_key_name ON sessions (access_key, name);
CREATE INDEX ix_sessions_created_at ON sessions (created_at, id);
CREATE INDEX ix_sessions_terminated_at ON sessions (terminated_at) WHERE terminated_at IS NOT NULL;

CREATE TABLE kernels (
    id               uuid         CONSTRAINT pk_kernels PRIMARY KEY DEFAULT gen_random_uuid(),
    session_id       uuid         NOT NULL
        CONSTRAINT fk_kernels_session_id_sessions REFERENCES sessions (id) ON DELETE CASCADE,
    cluster_role     varchar(16)  NOT NULL DEFAULT 'main',
    cluster_idx      integer      NOT NULL DEFAULT 1,
    cluster_hostname varchar(64)  NOT NULL DEFAULT 'main1',
    image            varchar(512) NOT NULL,
    architecture     varchar(32)  NOT NULL DEFAULT 'x86_64',
    registry         varchar(512) NOT NULL,
    agent            varchar(64)  COLLATE "C" CONSTRAINT fk_kernels_agent_agents REFERENCES agents (id),
    agent_addr       varchar(128),
    container_id     varchar(64),
    kernel_host      varchar(128),                         -- null: the agent's
    repl_in_port     integer      NOT NULL DEFAULT 0,
    repl_out_port    integer      NOT NULL DEFAULT 0,
    stdin_port       integer      NOT NULL DEFAULT 0,
    stdout_port      integer      NOT NULL DEFAULT 0,
    service_ports    jsonb        NOT NULL DEFAULT '[]',
    attached_devices jsonb        NOT NULL DEFAULT '{}',
    occupied_slots   jsonb        NOT NULL,                -- asked for, then what it really got
    occupied_shares  jsonb        NOT NULL DEFAULT '{}',
    created_at       timestamptz  NOT NULL,
    terminated_at    timestamptz,
    status           kernelstatus NOT NULL DEFAULT 'PENDING',
    status_changed   timestamptz  NOT NULL,
    status_info      text,
    exit_code        integer,                              -- negative: signal; null: unknown
    incarnation      integer      NOT NULL DEFAULT 0,      -- grows at each start; the id stays
    deadline         timestamptz,                          -- when the reaper rescues it
    last_active      timestamptz,
    created_boot     text,                                 -- the agent's answer to create: only a report of
    created_seq      bigint,                               --   another boot or a later seq can miss the kernel
    container_log    bytea,
    last_stat        jsonb,
    CONSTRAINT uq_kernels_session_id_cluster_role_cluster_idx UNIQUE (session_id, cluster_role, cluster_idx),
    CONSTRAINT ck_kernels_main CHECK (cluster_role <> 'main' OR id = session_id),
    CONSTRAINT ck_kernels_placed CHECK (agent IS NOT NULL OR status IN ('PENDING', 'TERMINATED', 'CANCELLED')),
    CONSTRAINT ck_kernels_ended CHECK ((status IN ('TERMINATED', 'CANCELLED')) = (terminated_at IS NOT NULL)),
    CONSTRAINT ck_kernels_bounded CHECK (
        deadline IS NOT NULL OR status IN ('PENDING', 'RUNNING', 'TERMINATED', 'CANCELLED'))
);
CREATE INDEX ix_kernels_occupying ON kernels (agent)
    WHERE status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED');
CREATE INDEX ix_kernels_deadline ON kernels (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX ix_kernels_to_start ON kernels (status_changed, id) WHERE status = 'SCHEDULED';

CREATE TABLE session_dependencies (
    session_id uuid NOT NULL
        CONSTRAINT fk_session_dependencies_session_id_sessions
        REFERENCES sessions (id) ON UPDATE CASCADE ON DELETE CASCADE,
    depends_on uuid NOT NULL
        CONSTRAINT fk_session_dependencies_depends_on_sessions
        REFERENCES sessions (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT pk_session_dependencies PRIMARY KEY (session_id, depends_on),
    CONSTRAINT ck_session_dependencies_other CHECK (session_id <> depends_on)
);
CREATE INDEX ix_session_dependencies_depends_on ON session_dependencies (depends_on);

CREATE TYPE runstate AS ENUM (
    'queued',         -- accepted by the shim, waits for the runs before it
    'running',
    'waiting-input',  -- the program asked for a line
    'finished',       -- ended by itself (terminal)
    'timeout',        -- its limit interrupted it (terminal)
    'cancelled',      -- interrupted on request (terminal)
    'lost'            -- the kernel died before it ended (terminal)
);

-- A projection of what shims report; they alone decide about runs.
CREATE TABLE runs (
    session_id   uuid        NOT NULL
        CONSTRAINT fk_runs_session_id_sessions REFERENCES sessions (id) ON DELETE CASCADE,
    run_id       varchar(64) COLLATE "C" NOT NULL,
    kernel_id    uuid        NOT NULL
        CONSTRAINT fk_runs_kernel_id_kernels REFERENCES kernels (id) ON DELETE CASCADE,
    incarnation  integer     NOT NULL,
    digest       text        NOT NULL,                     -- of the body that started it
    mode         varchar(16) NOT NULL,
    step         varchar(16),
    state        runstate    NOT NULL,
    exit_code    integer,
    reason       text        NOT NULL DEFAULT '',
    end_offset   bigint      NOT NULL DEFAULT 0,           -- payload bytes of all streams
    stream_bytes jsonb       NOT NULL DEFAULT '{}',        -- stream -> payload bytes
    queued_at    timestamptz NOT NULL,
    started_at   timestamptz,
    ended_at     timestamptz,
    CONSTRAINT pk_runs PRIMARY KEY (session_id, run_id),
    CONSTRAINT ck_runs_ended CHECK (
        (state IN ('finished', 'timeout', 'cancelled', 'lost')) = (ended_at IS NOT NULL))
);
CREATE INDEX ix_runs_kernel_id ON runs (kernel_id);
CREATE INDEX ix_runs_ended_at ON runs (ended_at) WHERE ended_at IS NOT NULL;


-- ------------------------------------------------------------------ events

-- Ids commit in order: whoever has read up to an id will never see a smaller one appear. No foreign keys,
-- the log outlives what it tells of.
CREATE TABLE events (
    id         bigint      CONSTRAINT pk_events PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    time       timestamptz NOT NULL,
    type       varchar(64) NOT NULL,
    session_id uuid,
    kernel_id  uuid,
    agent_id   varchar(64),
    user_uuid  uuid,
    access_key varchar(20),                                -- the session's owner
    payload    jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX ix_events_time ON events (time);
CREATE INDEX ix_events_session_id ON events (session_id, id) WHERE session_id IS NOT NULL;

-- The lock is taken before the statement draws its ids and is held until commit; so inserting events must be
-- the last thing that a transaction does.
CREATE FUNCTION lock_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(4201);
    RETURN NULL;
END $$;
CREATE TRIGGER tr_events_lock BEFORE INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION lock_events();
CREATE TRIGGER tr_events_notify AFTER INSERT ON events
    FOR EACH STATEMENT EXECUTE FUNCTION notify_topic('events');


-- ------------------------------------------------------------------ virtual folders

CREATE TYPE vfolderusagemode AS ENUM ('general', 'model', 'data');
CREATE TYPE vfolderownershiptype AS ENUM (
    'user',         -- one person's
    'group'         -- a project's
);
CREATE TYPE vfolderpermission AS ENUM (
    'ro',           -- read
    'rw',           -- read and write
    'wd'            -- read, write, delete: the owner's
);
CREATE TYPE vfolderinvitationstate AS ENUM (
    'pending',
    'canceled',     -- by the inviter
    'accepted',
    'rejected'      -- by the invitee
);

CREATE TABLE vfolders (
    id             uuid         CONSTRAINT pk_vfolders PRIMARY KEY DEFAULT gen_random_uuid(),
    host           varchar(128) NOT NULL,                  -- "proxy:volume"; empty: unmanaged
    name           varchar(64)  NOT NULL,
    usage_mode     vfolderusagemode NOT NULL DEFAULT 'general',
    permission     vfolderpermission DEFAULT 'rw',
    max_files      integer      DEFAULT 1000,
    max_size       integer,                                -- MiB
    num_files      integer      DEFAULT 0,
    cur_size       integer      DEFAULT 0,                 -- KiB
    created_at     timestamptz  NOT NULL DEFAULT now(),
    last_used      timestamptz,
    creator        varchar(128),
    unmanaged_path varchar(512),
    ownership_type vfolderownershiptype NOT NULL DEFAULT 'user',
    "user"         uuid         CONSTRAINT fk_vfolders_user_users REFERENCES users (uuid),
    "group"        uuid         CONSTRAINT fk_vfolders_group_groups REFERENCES groups (id),
    cloneable      boolean      NOT NULL DEFAULT false,
    CONSTRAINT ck_vfolders_ownership_type_match_with_user_or_group CHECK (
        (ownership_type = 'user' AND "user" IS NOT NULL) OR (ownership_type = 'group' AND "group" IS NOT NULL)),
    CONSTRAINT ck_vfolders_either_one_of_user_or_group CHECK (("user" IS NULL) <> ("group" IS NULL))
);
CREATE INDEX ix_vfolders_name ON vfolders (name);
CREATE INDEX ix_vfolders_user ON vfolders ("user");
CREATE INDEX ix_vfolders_group ON vfolders ("group");

CREATE TABLE vfolder_permissions (
    permission vfolderpermission DEFAULT 'rw',
    vfolder    uuid NOT NULL
        CONSTRAINT fk_vfolder_permissions_vfolder_vfolders
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    "user"     uuid NOT NULL CONSTRAINT fk_vfolder_permissions_user_users REFERENCES users (uuid)
);
CREATE INDEX ix_vfolder_permissions_user ON vfolder_permissions ("user");
CREATE INDEX ix_vfolder_permissions_vfolder ON vfolder_permissions (vfolder);

CREATE TABLE vfolder_invitations (
    id          uuid         CONSTRAINT pk_vfolder_invitations PRIMARY KEY DEFAULT gen_random_uuid(),
    permission  vfolderpermission DEFAULT 'rw',
    inviter     varchar(256),
    invitee     varchar(256) NOT NULL,
    state       vfolderinvitationstate NOT NULL DEFAULT 'pending',
    created_at  timestamptz  NOT NULL DEFAULT now(),
    modified_at timestamptz,
    vfolder     uuid         NOT NULL
        CONSTRAINT fk_vfolder_invitations_vfolder_vfolders
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE
);
CREATE INDEX ix_vfolder_invitations_invitee ON vfolder_invitations (invitee, state);

CREATE TABLE vfolder_attachment (
    vfolder uuid
        CONSTRAINT fk_vfolder_attachment_vfolder_vfolders
        REFERENCES vfolders (id) ON UPDATE CASCADE ON DELETE CASCADE,
    kernel  uuid
        CONSTRAINT fk_vfolder_attachment_kernel_kernels
        REFERENCES kernels (id) ON UPDATE CASCADE ON DELETE CASCADE,
    CONSTRAINT pk_vfolder_attachment PRIMARY KEY (vfolder, kernel)
);
CREATE INDEX ix_vfolder_attachment_kernel ON vfolder_attachment (kernel);


-- ------------------------------------------------------------------ templates, error logs, settings

CREATE TYPE templatetype AS ENUM (
    'TASK',         -- one kernel
    'CLUSTER'       -- several, from task templates
);

CREATE TABLE session_templates (
    id          uuid         CONSTRAINT pk_session_templates PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at  timestamptz  NOT NULL DEFAULT now(),
    is_active   boolean      NOT NULL DEFAULT true,
    domain_name varchar(64)  NOT NULL
        CONSTRAINT fk_session_templates_domain_name_domains REFERENCES domains (name),
    group_id    uuid         CONSTRAINT fk_session_templates_group_id_groups REFERENCES groups (id),
    user_uuid   uuid         NOT NULL CONSTRAINT fk_session_templates_user_uuid_users REFERENCES users (uuid),
    type        templatetype NOT NULL DEFAULT 'TASK',
    name        varchar(128),
    template    jsonb        NOT NULL
);
CREATE INDEX ix_session_templates_user_uuid ON session_templates (user_uuid);

CREATE TYPE errorlog_severity AS ENUM ('critical', 'error', 'warning');

CREATE TABLE error_logs (
    id             uuid        CONSTRAINT pk_error_logs PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at     timestamptz NOT NULL DEFAULT now(),
    severity       errorlog_severity NOT NULL,
    source         varchar,
    "user"         uuid        CONSTRAINT fk_error_logs_user_users REFERENCES users (uuid),
    is_read        boolean     NOT NULL DEFAULT false,
    is_cleared     boolean     NOT NULL DEFAULT false,
    message        text,
    context_lang   varchar,
    context_env    jsonb,
    request_url    varchar,
    request_status integer,
    traceback      text
);
CREATE INDEX ix_error_logs_created_at ON error_logs (created_at);
CREATE INDEX ix_error_logs_user ON error_logs ("user", is_read, is_cleared);

-- Shared settings: the key tree, one row per leaf.
CREATE TABLE settings (
    key      text   COLLATE "C" CONSTRAINT pk_settings PRIMARY KEY,   -- bytewise order serves subtree reads
    value    text   NOT NULL,
    revision bigint NOT NULL DEFAULT 1                                -- grows at each write, for compare-and-swap
);

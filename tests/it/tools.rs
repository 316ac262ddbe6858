//! What the model hears back from its tools, and what they leave behind.

use crate::support::data::{CALLER, DataFolder};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use voicebot::campaign::{DialNumber, DoNotCall};
use voicebot::phone::CountryCode;
use voicebot::session::{self, SharedSession};
use voicebot::store::JournalLock;
use voicebot::tools::{CallAction, CallRequest, ToolOutput, Toolbox, ToolsConfig, TransferConfig};

const ID: &str = "session_20261121_100000_aaaaaa";

struct Call {
    data: DataFolder,
    session: SharedSession,
    tools: Toolbox,
    _lock: JournalLock,
}

fn call() -> Call {
    let data = DataFolder::new();
    let (session, lock) = data.running_call(ID, Some(CALLER));
    let tools = Toolbox::new(session.clone(), data.store.clone(), &ToolsConfig::default());
    Call {
        data,
        session,
        tools,
        _lock: lock,
    }
}

impl Call {
    async fn use_tool(&self, name: &str, arguments: Value) -> ToolOutput {
        self.tools.call(name, &arguments.to_string()).await
    }
}

fn good_lead() -> Value {
    json!({ "name": "Asha Example", "email": "asha@example.com", "company": "Example Pumps", "interest": "a pump" })
}

fn with(mut lead: Value, key: &str, value: Value) -> Value {
    lead[key] = value;
    lead
}

#[tokio::test]
async fn a_complete_lead_is_saved_and_linked() {
    let call = call();
    let output = call
        .use_tool("create_lead", with(good_lead(), "budget", json!(5000)))
        .await;
    assert!(!output.is_error, "{}", output.text);
    let session = session::lock(&call.session);
    let path = session.get_lead_file_path().expect("a path");
    assert_eq!(path, format!("leads/lead_{ID}_1.json"));
    assert_eq!(session.get_campaign_metadata()["lead_file"], path);
    let lead = call.data.json(path);
    assert_eq!(lead["budget"], "5000", "a number is taken as it was meant");
    assert_eq!(lead["timeline"], "");
    assert_eq!(
        lead["lead_id"],
        session.get_complete_session_data().lead_ids[0].as_str()
    );
}

#[tokio::test]
async fn a_wrong_lead_is_told_in_words_and_nothing_is_saved() {
    let call = call();
    for (arguments, expected) in [
        (
            json!({}),
            vec![
                "name is missing",
                "email is missing",
                "company is missing",
                "interest is missing",
            ],
        ),
        (
            with(good_lead(), "email", json!("asha at example dot com")),
            vec!["not an e-mail address", "spell"],
        ),
        (
            with(good_lead(), "company", json!("  ")),
            vec!["company is missing"],
        ),
        (
            with(good_lead(), "name", json!("Unknown")),
            vec!["name is missing"],
        ),
        (
            with(good_lead(), "name", json!(["Asha"])),
            vec!["name must be a text"],
        ),
        (
            with(good_lead(), "phone", json!("call me")),
            vec!["not a phone number", "leave it out"],
        ),
        (
            with(good_lead(), "interest", json!("x".repeat(2000))),
            vec!["longer than"],
        ),
    ] {
        let output = call.use_tool("create_lead", arguments.clone()).await;
        assert!(output.is_error, "{arguments}");
        for words in expected {
            assert!(output.text.contains(words), "{arguments}: {}", output.text);
        }
        assert!(
            output.text.contains("call create_lead again"),
            "{}",
            output.text
        );
    }
    for text in ["{\"name\": ", "[1]", "null"] {
        assert!(
            call.tools.call("create_lead", text).await.is_error,
            "{text}"
        );
    }
    assert_eq!(call.data.files("leads"), Vec::<String>::new());
    assert_eq!(session::lock(&call.session).get_lead_file_path(), None);
}

#[tokio::test]
async fn the_same_lead_twice_is_one_and_a_corrected_one_is_another() {
    let call = call();
    let (first, second) = tokio::join!(
        call.use_tool("create_lead", good_lead()),
        call.use_tool("create_lead", good_lead())
    );
    assert!(!first.is_error && !second.is_error);
    assert_eq!(call.data.files("leads").len(), 1);
    call.use_tool(
        "create_lead",
        with(good_lead(), "email", json!("asha.e@example.com")),
    )
    .await;
    let session = session::lock(&call.session);
    assert_eq!(session.get_complete_session_data().lead_files.len(), 2);
    assert_eq!(
        session.get_lead_file_path(),
        Some(format!("leads/lead_{ID}_2.json").as_str())
    );
}

#[tokio::test]
async fn a_disk_that_refuses_is_told_and_a_second_try_works() {
    let call = call();
    std::fs::remove_dir(call.data.path("leads")).unwrap();
    let output = call.use_tool("create_lead", good_lead()).await;
    assert!(
        output.is_error && output.text.contains("technical problem"),
        "{}",
        output.text
    );
    std::fs::create_dir(call.data.path("leads")).unwrap();
    assert!(!call.use_tool("create_lead", good_lead()).await.is_error);
    assert_eq!(call.data.files("leads").len(), 1);
}

#[tokio::test]
async fn an_intent_is_noted_with_what_it_is_about() {
    let call = call();
    let arguments =
        json!({ "intent": "book_demo", "confidence": "0.8", "entities": { "product": "pump" } });
    assert!(!call.use_tool("detect_intent", arguments).await.is_error);
    for wrong in [
        json!({}),
        json!({ "intent": "x", "confidence": 7 }),
        json!({ "intent": "x", "confidence": "very" }),
        json!({ "intent": "x", "entities": "pump" }),
    ] {
        assert!(
            call.use_tool("detect_intent", wrong.clone()).await.is_error,
            "{wrong}"
        );
    }
    let intents = session::lock(&call.session)
        .get_complete_session_data()
        .intents;
    assert_eq!(intents.len(), 1);
    assert_eq!(
        (intents[0].confidence, &intents[0].entities["product"]),
        (Some(0.8), &json!("pump"))
    );
}

#[tokio::test]
async fn end_call_ends_the_call_whatever_its_arguments_look_like() {
    let call = call();
    for arguments in ["", "{}", "{\"reason\": \"done\"}", "{\"reason\": 5}"] {
        let output = call.tools.call("end_call", arguments).await;
        assert_eq!(
            (output.request, output.is_error),
            (Some(CallRequest::HangUp), false),
            "{arguments}"
        );
    }
}

#[tokio::test]
async fn what_a_tool_did_is_an_event_of_the_session_also_when_it_was_not_done() {
    let call = call();
    call.use_tool("create_lead", good_lead()).await;
    call.tools.call("create_lead", "{").await;
    call.tools.call("no_such_tool", "{}").await;
    let uses = session::lock(&call.session)
        .get_complete_session_data()
        .tool_uses;
    let told: Vec<_> = uses
        .iter()
        .map(|used| (used.name.as_str(), used.is_error))
        .collect();
    assert_eq!(
        told,
        [
            ("create_lead", false),
            ("create_lead", true),
            ("no_such_tool", true)
        ]
    );
    assert_eq!(uses[0].arguments, good_lead());
    let journals = call.data.files("conversations");
    let journal = journals.iter().find(|name| name.ends_with(".jsonl"));
    let journal = call
        .data
        .path(&format!("conversations/{}", journal.expect("a journal")));
    let journal = std::fs::read_to_string(journal).unwrap();
    assert_eq!(journal.matches("\"tool_use\"").count(), 3, "{journal}");

    // A model may go on for ever; a journal does not.
    for _ in 0..200 {
        call.tools.call("end_call", "{}").await;
    }
    let uses = session::lock(&call.session)
        .get_complete_session_data()
        .tool_uses;
    assert_eq!(uses.len(), 100);
}

fn telephone_tools() -> ToolsConfig {
    let targets = [
        ("Sales", "tel:+15550100155"),
        ("help", "sip:help@example.com"),
    ];
    ToolsConfig {
        enabled: ["send_dtmf", "transfer_call"].map(str::to_owned).into(),
        transfer: TransferConfig {
            targets: targets
                .map(|(name, target)| (name.to_owned(), target.to_owned()))
                .into(),
            ..TransferConfig::default()
        },
        ..ToolsConfig::default()
    }
}

#[tokio::test]
async fn what_tools_want_of_the_telephone_is_data_that_the_call_acts_on() {
    let call = call();
    let (wanted, mut actions) = mpsc::channel(1);
    let config = telephone_tools();
    config.check().expect("the settings are right");
    let tools = Toolbox::new(call.session.clone(), call.data.store.clone(), &config);
    let tools = tools.with_call(wanted);
    let transfer = &tools.definitions()[1];
    let names = &transfer.parameters["properties"]["to"]["enum"];
    assert_eq!(*names, json!(["Sales", "help"]));

    let mut answer = async |answer: Result<(), String>| {
        let wanted = actions.recv().await.expect("an action");
        wanted.done.send(answer).expect("the tool waits");
        wanted.action
    };
    let keys = tools.call("send_dtmf", r#"{"keys": "1 w 2#"}"#);
    let (told, action) = tokio::join!(keys, answer(Ok(())));
    assert_eq!(action, CallAction::Keys("1W2#".to_owned()));
    assert!(!told.is_error, "{}", told.text);

    let handed = tools.call("transfer_call", r#"{"to": "sales"}"#);
    let (told, action) = tokio::join!(handed, answer(Err("603 Declined".to_owned())));
    let CallAction::Transfer { target, .. } = action else {
        panic!("{action:?}");
    };
    assert_eq!(target, "tel:+15550100155");
    assert!(
        told.is_error && told.text.contains("603 Declined"),
        "{}",
        told.text
    );
    let uses = session::lock(&call.session)
        .get_complete_session_data()
        .tool_uses;
    assert!(
        uses[1].result.contains("603 Declined"),
        "the record has the code"
    );
}

#[tokio::test]
async fn a_caller_is_handed_over_to_nobody_but_whom_the_settings_name() {
    let call = call();
    let config = telephone_tools();
    let tools = Toolbox::new(call.session.clone(), call.data.store.clone(), &config);
    for to in ["tel:+15550100999", "+15550100155", "boss", ""] {
        let arguments = json!({ "to": to }).to_string();
        let told = tools.call("transfer_call", &arguments).await;
        assert!(
            told.is_error && told.text.contains("Sales, help"),
            "{}",
            told.text
        );
    }
    // There is no call behind these tools.
    let told = tools.call("transfer_call", r#"{"to": "help"}"#).await;
    assert!(
        told.is_error && told.text.contains("no telephone"),
        "{}",
        told.text
    );
    for (targets, word) in [
        (vec![], "names nobody"),
        (vec![("sales", "+15550100155")], "transfer.targets.sales"),
        (vec![("sales", "tel:")], "transfer.targets.sales"),
        (vec![("sales", "tel:+1 555")], "transfer.targets.sales"),
    ] {
        let mut config = telephone_tools();
        config.transfer.targets = targets
            .iter()
            .map(|(name, target)| ((*name).to_owned(), (*target).to_owned()))
            .collect();
        let problem = config.check().expect_err("it is refused");
        assert!(problem.contains(word), "{problem}");
    }
}

#[tokio::test]
async fn only_what_the_configuration_names_can_be_used() {
    let call = call();
    let config = ToolsConfig {
        enabled: vec!["end_call".to_owned()],
        ..ToolsConfig::default()
    };
    let tools = Toolbox::new(call.session.clone(), call.data.store.clone(), &config);
    assert_eq!(tools.definitions().len(), 1);
    assert!(
        tools
            .call("create_lead", &good_lead().to_string())
            .await
            .is_error
    );
    assert!(tools.call("delete_everything", "{}").await.is_error);
    let unknown = ToolsConfig {
        enabled: vec!["create_leed".to_owned()],
        ..ToolsConfig::default()
    };
    assert!(
        unknown
            .check()
            .unwrap_err()
            .contains("tools.enabled names \"create_leed\"")
    );
}

#[tokio::test]
async fn every_required_argument_is_described_to_the_model() {
    for tool in call().tools.definitions() {
        let required = tool.parameters["required"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for name in required {
            let name = name.as_str().unwrap();
            assert!(
                tool.parameters["properties"][name]["description"].is_string(),
                "{}.{name}",
                tool.name
            );
        }
    }
}

#[tokio::test]
async fn a_phone_is_saved_in_whatever_form_it_was_written() {
    let case = include_str!("../fixtures/cases/phone-of-a-lead/phones.json");
    let phones: Vec<Value> = serde_json::from_str(case).unwrap();
    let expected = [
        "(555) 123-4567 ext. 5",
        "555-123-4567 ext. 12",
        "+918655066243",
        "8655066243",
        "+91 86550 66243",
        "+918655066243",
        "555-123-4567",
        "8655066243",
    ];
    assert_eq!(phones.len(), expected.len());
    for (phone, expected) in phones.iter().zip(expected) {
        let call = call();
        let lead = with(good_lead(), "phone", phone.clone());
        let output = call.use_tool("create_lead", lead).await;
        assert!(!output.is_error, "{phone}: {}", output.text);
        let session = session::lock(&call.session);
        let path = session.get_lead_file_path().expect("a path");
        assert_eq!(call.data.json(path)["phone"], expected, "{phone}");
    }
}

#[tokio::test]
async fn words_for_nothing_are_nothing_except_as_names() {
    let case = include_str!("../fixtures/cases/words-for-nothing/lead.json");
    let lead: Value = serde_json::from_str(case).unwrap();
    let call = call();
    let output = call.use_tool("create_lead", lead.clone()).await;
    assert!(
        output.text.contains("company is missing"),
        "{}",
        output.text
    );
    assert!(!output.text.contains("name is missing"), "{}", output.text);
    for (key, value, named) in [
        ("company", "not mentioned", "company is missing"),
        ("email", "unknown@example.com", "email is missing"),
        ("interest", "Not yet specified.", "interest is missing"),
        ("name", "Not provided", "name is missing"),
    ] {
        let output = call
            .use_tool("create_lead", with(good_lead(), key, json!(value)))
            .await;
        assert!(output.text.contains(named), "{value}: {}", output.text);
    }
    for name in ["Na", "Null"] {
        let lead = with(
            with(lead.clone(), "company", json!("Li Pumps")),
            "name",
            json!(name),
        );
        let output = call.use_tool("create_lead", lead).await;
        assert!(!output.is_error, "{name}: {}", output.text);
        let session = session::lock(&call.session);
        let path = session.get_lead_file_path().expect("a path");
        assert_eq!(call.data.json(path)["name"], name);
    }
}

#[tokio::test]
async fn what_is_to_follow_a_call_is_in_its_record_and_goes_to_the_crm() {
    let data = DataFolder::new();
    let (session, _lock) = data.running_call(ID, Some(CALLER));
    let enabled = ["set_outcome", "schedule_callback", "add_to_do_not_call"];
    let mut config = ToolsConfig {
        enabled: enabled.map(str::to_owned).into(),
        ..ToolsConfig::default()
    };
    config.follow_up.outcomes = vec!["interested".into(), "not_interested".into()];
    config.follow_up.time_zone = "Asia/Kolkata".into();
    config.check().unwrap();
    let tools = Toolbox::new(session.clone(), data.store.clone(), &config);
    let told = serde_json::to_string(&tools.definitions()).unwrap();
    assert!(
        told.contains("not_interested") && told.contains("Asia/Kolkata"),
        "{told}"
    );

    let tomorrow = chrono::Utc::now() + chrono::TimeDelta::days(1);
    let local = (tomorrow + chrono::TimeDelta::minutes(330)).format("%Y-%m-%dT%H:%M");
    for (name, arguments, refused) in [
        (
            "set_outcome",
            json!({ "outcome": "perhaps" }),
            Some("one of interested, not_interested"),
        ),
        ("set_outcome", json!({ "outcome": "Interested" }), None),
        (
            "schedule_callback",
            json!({ "at": "2020-01-01T10:00" }),
            Some("that time is over"),
        ),
        (
            "schedule_callback",
            json!({ "at": local.to_string(), "reason": "the price" }),
            None,
        ),
        (
            "add_to_do_not_call",
            json!({ "reason": "too many calls" }),
            None,
        ),
    ] {
        let output = tools.call(name, &arguments.to_string()).await;
        assert_eq!(output.is_error, refused.is_some(), "{}", output.text);
        assert!(
            output.text.contains(refused.unwrap_or("Noted")),
            "{}",
            output.text
        );
    }

    // Campaigns do not call it any more, whatever kind of call this was.
    let mut list = DoNotCall::new(data.store.root(), CountryCode::default());
    let number = DialNumber::read(CALLER, &CountryCode::default()).unwrap();
    assert!(list.contains(number).unwrap());

    let end = chrono::Utc::now();
    let known = session::lock(&session).get_complete_session_data();
    let record = session::CallRecord::new(&known, None, "c.json".into(), end, end);
    let written = serde_json::to_value(&record).unwrap();
    let minute = tomorrow.format("%Y-%m-%dT%H:%M").to_string();
    assert_eq!(written["agent_outcome"], "interested");
    assert!(
        written["callback"]["at"]
            .as_str()
            .unwrap()
            .starts_with(&minute),
        "{written}"
    );
    assert_eq!(written["callback"]["reason"], "the price");
    assert_eq!(
        written["do_not_call"],
        json!({ "reason": "too many calls" })
    );
    let payload = session::crm_payload(&record, None, None, None);
    let details = &payload["callDetails"];
    assert_eq!(details["agentOutcome"], "interested");
    assert_eq!(details["callback"], written["callback"]);
    assert_eq!(details["doNotCall"], written["do_not_call"]);
}

#[test]
fn a_wrong_time_zone_is_named_by_its_key() {
    let mut config = ToolsConfig::default();
    config.follow_up.time_zone = "Kolkata".into();
    let problem = config.check().unwrap_err();
    assert!(
        problem.starts_with("tools.follow_up.time_zone"),
        "{problem}"
    );
}

//! What happened to a call, as an operator reads it.

use serde_json::Value;

use super::text::{if_known, name, plain_name};
use crate::ledger::TimelineEvent;
use crate::session::{AttemptOutcome, DeliveryPart, Direction, RecordingSource, Role, TurnRecord};

/// What happened, and the rest of the line.
pub fn event_text(event: &TimelineEvent) -> (&'static str, String) {
    (event_title(event), event_details(event))
}

fn event_title(event: &TimelineEvent) -> &'static str {
    match event {
        TimelineEvent::Dispatched { .. } => "dispatched",
        TimelineEvent::Joined { .. } => "agent joined",
        TimelineEvent::Answered { .. } => "answered",
        TimelineEvent::RecordingStarted { .. } => "recording started",
        TimelineEvent::Said { role, .. } => match role {
            Role::User => "caller said",
            Role::Assistant => "agent said",
        },
        TimelineEvent::TurnAnswered { .. } => "turn answered",
        TimelineEvent::Intent { .. } => "intent",
        TimelineEvent::ToolUsed { .. } => "tool",
        TimelineEvent::Lead { .. } => "lead",
        TimelineEvent::HungUp { .. } => "hung up",
        TimelineEvent::Recording { .. } => "recording",
        TimelineEvent::RecordWritten { .. } => "record written",
        TimelineEvent::Request { part, .. } | TimelineEvent::Tried { part, .. } => match part {
            DeliveryPart::Recording => "upload",
            DeliveryPart::CallData => "call data",
            DeliveryPart::CallDataUpdate => "call data again",
        },
        TimelineEvent::NextAttempt { .. } => "next attempt",
        TimelineEvent::WithoutRecording { .. } => "no recording",
        TimelineEvent::RecordingDelivered { .. } => "recording sent",
        TimelineEvent::CrmAnswer { .. } => "CRM answered",
        TimelineEvent::Refused { .. } => "refused",
        TimelineEvent::Delivered => "delivered",
        TimelineEvent::Archived { .. } => "archived",
    }
}

fn event_details(event: &TimelineEvent) -> String {
    use TimelineEvent as Event;
    match event {
        Event::Dispatched { job_id, room } => {
            format!("job {}{}", or_dash(job_id), if_known(", room ", room))
        }
        Event::Joined { room_sid } => format!("room {}", or_dash(room_sid)),
        Event::Answered {
            direction,
            number,
            trunk_number,
            persona,
        } => {
            let parties = parties(*direction, or_dash(number), or_dash(trunk_number));
            format!("{parties}{}", if_known(", persona ", persona))
        }
        Event::RecordingStarted {
            source,
            egress_id,
            file,
        } => format!(
            "{}{}{}",
            recorded_by(*source),
            if_known(" ", egress_id),
            if_known(", ", file)
        ),
        Event::Said {
            content,
            confidence,
            interrupted,
            answered_after_ms,
            ..
        } => {
            let cut_off = if *interrupted { " [cut off]" } else { "" };
            let after = answered_after_ms.map(|ms| format!(" [after {ms} ms]"));
            let after = after.unwrap_or_default();
            format!("{content}{cut_off}{after}{}", confidence_text(*confidence))
        }
        Event::TurnAnswered { turn } => turn_text(turn),
        Event::Intent {
            intent,
            confidence,
            entities,
        } => {
            let confidence = confidence_text(*confidence);
            format!("{intent}{confidence}{}", entities_text(entities))
        }
        Event::ToolUsed {
            name,
            result,
            is_error,
            duration_ms,
        } => {
            let not_done = if *is_error { ", not done" } else { "" };
            format!("{name} [{duration_ms} ms{not_done}]: {result}")
        }
        Event::Lead { file, lead } => lead_text(file.as_deref(), lead),
        Event::HungUp {
            close_reason,
            disconnect_reason,
            call_status,
            error,
        } => {
            let why = if_known(": ", &close_reason.as_ref().map(name));
            let (said, broke) = (if_known(", ", disconnect_reason), if_known("; ", error));
            format!("{}{why}{said}{broke}", name(call_status))
        }
        Event::Recording {
            state,
            evidence,
            error,
        } => {
            let evidence = if_known(", known from ", &evidence.as_ref().map(plain_name));
            format!("{}{evidence}{}", name(state), if_known(": ", error))
        }
        Event::RecordWritten { file } | Event::Archived { file } => file.clone(),
        Event::Request {
            outcome,
            took_ms,
            error,
            ..
        } => {
            let outcome = attempt_text(*outcome);
            format!("{outcome} [{took_ms} ms]{}", if_known(": ", error))
        }
        Event::Tried {
            attempts, error, ..
        } => format!("{attempts} requests{}", if_known(": ", error)),
        Event::NextAttempt { part, error } => {
            format!("{}{}", plain_name(part), if_known(": ", error))
        }
        Event::WithoutRecording { error } => or(error, "the call was not recorded").to_owned(),
        Event::RecordingDelivered {
            url,
            size,
            duration,
        } => {
            let size = size.map(|size| format!(", {size} bytes"));
            let length = duration.map(|seconds| format!(", {seconds} s"));
            let at = or(url, "the CRM did not say where to");
            format!(
                "{at}{}{}",
                size.unwrap_or_default(),
                length.unwrap_or_default()
            )
        }
        Event::CrmAnswer { response } => response.to_string(),
        Event::Refused { error } => {
            let why = or(error, "the CRM did not take it");
            format!("{why}; `voicebot uploads retry` sends it again")
        }
        Event::Delivered => "all of it is confirmed".to_owned(),
    }
}

/// `text 212, end of turn 300, token 512, voice 690, heard 702 ms; …`.
fn turn_text(turn: &TurnRecord) -> String {
    let stages = [
        ("text", turn.final_text_ms),
        ("end of turn", turn.end_of_turn_ms),
        ("token", turn.first_token_ms),
        ("voice", turn.first_byte_ms),
        ("heard", turn.first_frame_ms),
    ];
    let stages: Vec<String> = stages
        .into_iter()
        .filter_map(|(name, ms)| Some(format!("{name} {}", ms?)))
        .collect();
    let mut parts = Vec::new();
    if !stages.is_empty() {
        parts.push(format!("after {} ms", stages.join(", ")));
    }
    let vendors = &turn.vendors;
    let vendors = [&vendors.stt, &vendors.llm, &vendors.tts];
    let vendors: Vec<&str> = vendors.into_iter().flatten().map(String::as_str).collect();
    if !vendors.is_empty() {
        parts.push(vendors.join(", "));
    }
    let usage = &turn.usage;
    let in_vain = usage.llm_prompt_tokens_in_vain + usage.llm_completion_tokens_in_vain;
    let in_vain = match in_vain {
        0 => String::new(),
        tokens => format!(" ({tokens} in vain)"),
    };
    parts.push(format!(
        "{} + {} tokens{in_vain}, {:.1} s recognised, {} characters spoken",
        usage.llm_prompt_tokens,
        usage.llm_completion_tokens,
        usage.stt_audio_ms as f64 / 1_000.0,
        usage.tts_characters
    ));
    let again = [
        ("recognition", usage.stt_retries, usage.stt_fallbacks),
        ("model", usage.llm_retries, usage.llm_fallbacks),
        ("voice", usage.tts_retries, usage.tts_fallbacks),
    ];
    for (what, retries, fallbacks) in again {
        if retries + fallbacks > 0 {
            parts.push(format!("{what}: {retries} retries, {fallbacks} fallbacks"));
        }
    }
    format!("{}: {}", turn.turn, parts.join("; "))
}

fn or<'a>(text: &'a Option<String>, otherwise: &'a str) -> &'a str {
    text.as_deref().unwrap_or(otherwise)
}

fn or_dash(text: &Option<String>) -> &str {
    or(text, "-")
}

fn parties(direction: Option<Direction>, number: &str, trunk_number: &str) -> String {
    match direction {
        Some(Direction::Outbound) => format!("outbound, from {trunk_number} to {number}"),
        Some(Direction::Inbound) => format!("inbound, from {number} to {trunk_number}"),
        None => format!("from {number} to {trunk_number}"),
    }
}

fn recorded_by(source: RecordingSource) -> &'static str {
    match source {
        RecordingSource::Egress => "by egress",
        RecordingSource::Local => "by the call",
        RecordingSource::External => "by somebody else",
    }
}

fn attempt_text(outcome: AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Accepted => "accepted",
        AttemptOutcome::Duplicate => "the CRM had it already",
        AttemptOutcome::TryAgain => "not taken",
        AttemptOutcome::Refused => "refused",
    }
}

fn confidence_text(confidence: Option<f64>) -> String {
    let text = confidence.map(|confidence| format!(" [confidence {confidence:.2}]"));
    text.unwrap_or_default()
}

fn entities_text(entities: &Value) -> String {
    match entities {
        Value::Object(fields) if !fields.is_empty() => format!(" {entities}"),
        _ => String::new(),
    }
}

fn lead_text(file: Option<&str>, lead: &Value) -> String {
    const FIELDS: [&str; 8] = [
        "name",
        "company",
        "email",
        "phone",
        "interest",
        "job_title",
        "budget",
        "timeline",
    ];
    let mut parts: Vec<String> = FIELDS
        .iter()
        .filter_map(|field| {
            let text = lead[*field].as_str().filter(|text| !text.is_empty())?;
            Some(format!("{}: {text}", field.replace('_', " ")))
        })
        .collect();
    parts.extend(lead["lead_id"].as_str().map(|id| format!("id: {id}")));
    parts.extend(file.map(|file| format!("file: {file}")));
    parts.join("; ")
}

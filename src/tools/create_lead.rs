//! `create_lead`: keeps who wants to hear more, and about what.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use tracing::error;

use crate::phone;
use crate::session::{self, Lead, LeadId, time};

use super::fields::{Fields, is_email};
use super::{Context, Tool, ToolDefinition, ToolOutput, on_disk};

const NAME: &str = "create_lead";

pub(super) struct CreateLead;

#[async_trait]
impl Tool for CreateLead {
    fn name(&self) -> &'static str {
        NAME
    }

    fn definition(&self) -> ToolDefinition {
        let text = |description: &str| json!({ "type": "string", "description": description });
        ToolDefinition {
        name: NAME.to_owned(),
        description: "Save the caller as a sales lead. Use it once you have the caller's name, e-mail address, company and what they are \
                      interested in; ask for what is missing first, and never invent a value."
            .to_owned(),
        parameters: json!({
            "type": "object",
            "properties": {
                "name": text("Full name of the person"),
                "email": text("E-mail address, written like name@example.com"),
                "company": text("Name of the person's company"),
                "interest": text("What the person is interested in"),
                "phone": text("Phone number, if the person gave one"),
                "job_title": text("The person's role, if given"),
                "budget": text("Budget, if given, as it was said"),
                "timeline": text("When they want to start or decide, if given"),
            },
            "required": ["name", "email", "company", "interest"],
            "additionalProperties": false,
        }),
    }
    }

    async fn call(&self, context: &Context, arguments: Map<String, Value>) -> ToolOutput {
        // Writes a file and waits until the disk has it: not on the thread that keeps the sound
        // going.
        let context = context.clone();
        on_disk(move || save(&context, &arguments)).await
    }
}

/// Blocks on the disk.
fn save(context: &Context, arguments: &Map<String, Value>) -> ToolOutput {
    let mut fields = Fields::of(arguments);
    let mut lead = Lead {
        lead_id: LeadId::random(),
        session_id: session::lock(&context.session).session_id().clone(),
        call_id: None,
        name: fields.required_name("name", "their name"),
        email: fields.required("email", "their e-mail address"),
        company: fields.required("company", "the name of their company"),
        interest: fields.required("interest", "what they are interested in"),
        phone: fields.optional("phone"),
        job_title: fields.optional("job_title"),
        budget: fields.optional("budget"),
        timeline: fields.optional("timeline"),
        created_at: time::now(),
    };
    if !lead.email.is_empty() && !is_email(&lead.email) {
        fields.problem(format!(
            "email {:?} is not an e-mail address: ask the caller to spell it, and write it like name@example.com",
            lead.email
        ));
    }
    if !lead.phone.is_empty() {
        match phone::contact(&lead.phone) {
            Some(phone) => lead.phone = phone,
            None => fields.problem(format!(
                "phone {:?} is not a phone number: ask again, or leave it out",
                lead.phone
            )),
        }
    }
    if let Some(problems) = fields.problems() {
        return ToolOutput::refused(format!(
            "the lead was not saved: {problems}. Then call {NAME} again."
        ));
    }

    // Held while the file is written, so that two identical calls at the same time make one lead.
    let mut taken = context.taken();
    let key = identity(&lead);
    if let Some(id) = taken.get(&key) {
        return ToolOutput::done(format!("This lead is saved already (id {id})."));
    }
    match context.store.save_lead(&context.session, lead.clone()) {
        Ok(_) => {
            taken.insert(key, lead.lead_id.to_string());
            ToolOutput::done(format!(
                "The lead for {} from {} is saved (id {}).",
                lead.name, lead.company, lead.lead_id
            ))
        }
        Err(error) => {
            error!(%error, "failed to save a lead");
            ToolOutput::refused(
                "the lead could not be saved because of a technical problem. Call create_lead once more; if it fails again, tell the \
                 caller that somebody will call back.",
            )
        }
    }
}

/// Two calls with the same arguments are one lead; anything different, such as a corrected address,
/// is a newer one.
fn identity(lead: &Lead) -> String {
    let Lead {
        name,
        email,
        company,
        interest,
        phone,
        job_title,
        budget,
        timeline,
        ..
    } = lead;
    json!([
        name, email, company, interest, phone, job_title, budget, timeline
    ])
    .to_string()
}
